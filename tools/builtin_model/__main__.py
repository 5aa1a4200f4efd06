"""The commands: pack, vae, decoder, latents, unet, preview, export, reference; see README.md in this folder."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

MODELS = Path(__file__).resolve().parents[2] / "models"


def main() -> None:
    """Runs one stage."""
    parser = argparse.ArgumentParser(prog="python -m tools.builtin_model", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("data/builtin_model"), help="where stages keep their state")
    parser.add_argument(
        "--preset", choices=("tiny", "small", "full"), default="small", help="tiny and small for a CPU, full for a GPU"
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("pack", help="download the drawings and pack them into art.zip")
    vae = stages.add_parser("vae", help="train the autoencoder")
    vae.add_argument("--minutes", type=float, default=25)
    vae.add_argument("--batch", type=int, default=16)
    decoder = stages.add_parser("decoder", help="train its decoder on at the model's own size")
    decoder.add_argument("--minutes", type=float, default=30)
    decoder.add_argument("--batch", type=int, default=8)
    latents = stages.add_parser("latents", help="encode the training pictures")
    latents.add_argument("--count", type=int, default=16_000, help="pictures of each size")
    unet = stages.add_parser("unet", help="train UNet and text encoder on the cached latents")
    unet.add_argument("--minutes", type=float, default=75)
    unet.add_argument("--batch", type=int, default=32)
    unet.add_argument("--workers", type=int, default=1, help="processes that share a batch; on a CPU, one a core")
    unet.add_argument("--compile", action="store_true", help="compile the UNet first, which takes minutes")
    unet.add_argument("--grown-from", type=Path, metavar="UNET.PT", help="begin around a model with a level less")
    export = stages.add_parser("export", help="write the checkpoint file from the trained state")
    export.add_argument("--out", type=Path, default=MODELS / "Stable-diffusion" / "atelier-sketchbook.safetensors")
    preview = stages.add_parser("preview", help="distil the small decoder that previews are made with")
    preview.add_argument("--minutes", type=float, default=8)
    preview.add_argument("--batch", type=int, default=16)
    preview.add_argument("--checkpoint", default="atelier-sketchbook", help="whose autoencoder; a name in models")
    preview.add_argument("--shapes", action="store_true", help="learn from drawn shapes alone, without art.zip")
    stages.add_parser("reference", help="write what evaluate.py judges by")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = arguments.folder / arguments.preset
    folder.mkdir(parents=True, exist_ok=True)

    if arguments.stage == "pack":
        from tools.builtin_model import art

        art.fetch(arguments.folder / "npm")
        art.pack(arguments.folder / "npm", arguments.folder / "art.zip")
    elif arguments.stage == "export":
        from tools.builtin_model.export import export as write_checkpoint

        write_checkpoint(folder, arguments.folder / "art.zip", arguments.preset, arguments.out)
    elif arguments.stage == "reference":
        from tools.builtin_model.reference import write_reference

        write_reference(arguments.folder / "art.zip", arguments.preset)
    else:
        _train(arguments, folder)


def _train(arguments: argparse.Namespace, folder: Path) -> None:
    from tools.builtin_model import autoencoder, diffusion, preview
    from tools.builtin_model.networks import PRESETS

    preset, pack, stage = PRESETS[arguments.preset], arguments.folder / "art.zip", arguments.stage
    if stage == "vae":
        autoencoder.train(folder, pack, preset, arguments.minutes, batch=arguments.batch)
    elif stage == "decoder":
        autoencoder.train_decoder(folder, pack, preset, arguments.minutes, batch=arguments.batch)
    elif stage == "latents":
        for size in preset.sides:
            autoencoder.cache_latents(folder, pack, preset, arguments.count, size)
    elif stage == "preview":
        name = arguments.checkpoint
        out = MODELS / "VAE-approx" / f"{name}_decoder.safetensors"
        preview.distil(MODELS, name, None if arguments.shapes else pack, out, arguments.minutes, batch=arguments.batch)
    else:
        diffusion.train(
            folder,
            preset,
            arguments.minutes,
            batch=arguments.batch,
            workers=arguments.workers,
            compiled=arguments.compile,
            grown_from=arguments.grown_from,
        )


if __name__ == "__main__":
    main()
