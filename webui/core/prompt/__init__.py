"""The language of prompts, as A1111 reads it. Pure: texts in, frozen trees and numbers out; no torch, no files.

A prompt is read in the order in which its rules bind:

1. `texts`: styles are merged in, comments go. (LoRA tags go before that: `webui.core.extra_networks`.)
2. `composition`: "AND" divides a prompt into prompts with weights.
3. `editing`: each of them may change from step to step ("[a:b:0.5]", "[a|b]"); what comes out are plain texts.
4. `emphasis`: a text falls at BREAK into sections, and these into fragments of one weight.
5. `chunks`: the tokens of those fragments, in chunks of 75.

Every text is accepted, because an artist's prompt is never "wrong": what does not parse is taken literally. All of it
takes time linear in the length of the text, whatever that holds.
"""
