"""The file formats that weights come in, one reader each: names, shapes and dtypes from the header. No torch here."""
