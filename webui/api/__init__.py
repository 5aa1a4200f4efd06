"""The HTTP edge besides the page: who may talk to the server at all, and the few routes of ours."""
