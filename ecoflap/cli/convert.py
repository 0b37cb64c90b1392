"""Write a saved model in another form: dense, which from_pretrained loads, bitmask, or coded.

    ecoflap convert outputs/runs/RUN SMALL --to coded

dense has all weights; bitmask omits the zeros; coded also writes the exponents of the other weights as a
Huffman code. All forms hold the same bits and are written shard by shard. Repeat the command to resume an
interrupted one. Exit code 2: the folder has no sound checkpoint, or OUT is not empty or another process is
writing it.
"""

from __future__ import annotations

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.errors import UserError
from ecoflap.storage.bitmask.forms import FORMS


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = ArgumentParser(prog="ecoflap convert", description=__doc__)
    parser.add_argument(
        "folder", type=given_path, help="folder of a saved model, or of the run that saved it"
    )
    parser.add_argument("out", type=given_path, help="new or empty folder to write")
    parser.add_argument("--to", choices=FORMS, required=True, help="the form to write")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        return complain(f"nothing converted: {options.folder} is not a folder; give a model's or a run's")
    from ecoflap.storage.bitmask.convert import convert  # it imports torch
    from ecoflap.storage.saved_model import model_folder, weight_bytes

    try:
        folder = model_folder(options.folder)
        convert(folder, options.out, options.to)
    except (OSError, ValueError, UserError) as error:
        from ecoflap.run.refusals import describe  # not for --help: it imports Hydra

        return complain(f"nothing converted: {describe(error) or error}")
    before, after = weight_bytes(folder), weight_bytes(options.out)
    print(f"{options.out}: {after:,} bytes of weights, {after / before:.3f} of the {before:,} before")
    return 0
