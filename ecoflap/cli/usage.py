"""``ecoflap run --help``: the groups with their options, and the config of the command line.

Hydra's own listing copies its whole store of configs once per group, which takes seconds.
"""

from __future__ import annotations

from argparse import Namespace

from omegaconf import OmegaConf, open_dict

from ecoflap.cli.choices import Choices
from ecoflap.errors import typed_command

EXAMPLES = {
    "": "the embedded BLIP-2 at 60 %",
    "model=smollm2_135m pruner=sparsegpt sparsity=0.5": "a real language model (make real-models)",
    "plan=true model=smollm2_135m": "check it and estimate how long it takes, without running it",
    "inspect=true model=causal_lm model.path=FOLDER": "only show what would be pruned",
    "-m sparsity=0.5,0.6,0.7 score=none,zeroth_order": "a sweep",
    "--config RUN/checkpoint/recipe.yaml": "repeat the run of a saved model",
}


def usage(flags: Namespace) -> str:
    """The help text.

    Args:
        flags: the command line, as Hydra parses it.
    """
    choices = Choices(flags.config_dir, flags.overrides)
    groups = [
        f"{group}: {', '.join(sorted(files))}"
        for group in choices.groups
        if not group.startswith("hydra") and (files := choices.files(group))
    ]
    config = choices.compose(flags.overrides)
    with open_dict(config):
        del config["hydra"]
    commands = {f"{typed_command()} {options}".rstrip(): about for options, about in EXAMPLES.items()}
    commands["ecoflap explain pruner=wanda"] = "what a choice does, and what each of its options means"
    return "\n".join(
        [
            "Prune vision-language models and LLMs in one pass:"
            " calibrate, score, allocate, prune, (finetune,) evaluate.\n",
            "== Options of each group (group=option) ==",
            *groups,
            "",
            "== Config of this command (key=value overrides it) ==",
            OmegaConf.to_yaml(config),
            "== Examples ==",
            *(f"# {about}\n{command}" for command, about in commands.items()),
        ]
    )
