"""The commands: vae, latents, unet, decoder, export, evaluate; see README.md in this folder."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

MODELS = Path(__file__).resolve().parents[2] / "models"


def main() -> None:
    """Runs one stage."""
    parser = argparse.ArgumentParser(prog="python -m tools.builtin_model", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("data/builtin_model"), help="where stages keep their state")
    stages = parser.add_subparsers(dest="stage", required=True)
    vae = stages.add_parser("vae", help="train the autoencoder")
    vae.add_argument("--minutes", type=float, default=25)
    latents = stages.add_parser("latents", help="encode the training pictures")
    latents.add_argument("--count", type=int, default=32_000)
    unet = stages.add_parser("unet", help="train UNet and text encoder on the cached latents")
    unet.add_argument("--minutes", type=float, default=90)
    unet.add_argument("--batch", type=int, default=32)
    unet.add_argument("--workers", type=int, default=1, help="processes that share a batch; on a CPU, one a core")
    decoder = stages.add_parser("decoder", help="sharpen the autoencoder's decoder")
    decoder.add_argument("--minutes", type=float, default=8)
    export = stages.add_parser("export", help="write the checkpoint file from the trained state")
    export.add_argument("--out", type=Path, default=MODELS / "Stable-diffusion" / "atelier-first-light.safetensors")
    evaluate = stages.add_parser("evaluate", help="ask the exported model for pictures and judge them")
    evaluate.add_argument("--models", type=Path, default=MODELS, help="the models folder")
    evaluate.add_argument("--sheet", type=Path, default=Path("docs/screenshots/built-in-model.png"))
    evaluate.add_argument("--quick", action="store_true", help="the 50 single objects alone")
    evaluate.add_argument("--json", action="store_true", help="one last line of JSON instead of a table")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments.folder.mkdir(parents=True, exist_ok=True)

    if arguments.stage == "export":
        from tools.builtin_model.export import export as write_checkpoint

        write_checkpoint(arguments.folder, arguments.out)
    elif arguments.stage == "evaluate":
        from tools.builtin_model.evaluate import report

        report(arguments.models, arguments.sheet, quick=arguments.quick, as_json=arguments.json)
    else:
        _train(arguments)


def _train(arguments: argparse.Namespace) -> None:
    from tools.builtin_model import train

    if arguments.stage == "vae":
        train.train_vae(arguments.folder, arguments.minutes)
    elif arguments.stage == "decoder":
        train.train_vae(arguments.folder, arguments.minutes, decoder_only=True)
    elif arguments.stage == "latents":
        train.cache_latents(arguments.folder, arguments.count)
    else:
        train.train_unet(arguments.folder, arguments.minutes, arguments.batch, arguments.workers)


if __name__ == "__main__":
    main()
