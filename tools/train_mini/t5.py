"""Train ``t5_mini`` from scratch on the multiple-choice questions of ``tools.train_mini.quiz``.

    python -m tools.train_mini.t5 --output ecoflap/mini/t5

The model is transformers' own T5 in Flan-T5's shape. It reads MMLU's prompt with 0 to 3 solved questions
before the one asked, and the first token it decodes is the letter. The recipe is fixed (steps, not minutes),
so two machines that run it differ only by rounding.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import BatchEncoding, PreTrainedTokenizerFast, T5ForConditionalGeneration

from ecoflap.data.mmlu.reading import LETTERS, Question, prompt
from tools.train_mini import quiz
from tools.train_mini.t5_model import EOS, Recipe, build, make_tokenizer, save
from tools.train_mini.training import command_line, note, optimizer_for, recipe_table, update

Splits = dict[str, dict[str, list[Question]]]


def draw(
    questions: Splits, shots: int, batch: int, source: random.Random
) -> tuple[list[str], list[Question]]:
    """Prompts and questions of a batch from the training split; the subject is drawn anew for each, the shots
    are of the same subject.
    """
    prompts, drawn = [], []
    for _ in range(batch):
        subject = source.choice(list(questions))
        *solved, asked = source.sample(questions[subject]["train"], shots + 1)
        prompts.append(prompt(subject, solved, asked))
        drawn.append(asked)
    return prompts, drawn


@torch.inference_mode()
def accuracies(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, questions: Splits, shots: int
) -> dict[str, float]:
    """Share of test questions by subject whose first predicted token, out of all tokens, is the letter; the
    shots are the first of dev.
    """
    model.eval()
    result = {}
    for subject, by_split in questions.items():
        prompts = [prompt(subject, by_split["dev"][:shots], question) for question in by_split["test"]]
        start = torch.full((len(prompts), 1), model.config.decoder_start_token_id)
        predicted = (
            model(**tokenizer(prompts, padding=True, return_tensors="pt"), decoder_input_ids=start)
            .logits[:, 0]
            .argmax(-1)
        )
        expected = torch.tensor(
            tokenizer.convert_tokens_to_ids([question.answer for question in by_split["test"]])
        )
        result[subject] = (predicted == expected).float().mean().item()
    model.train()
    return result


class Lessons(torch.nn.Module):
    """Three throw-away heads on the encoder: the answer's word read off the last vector, the right one of the
    options, the right one of the letters.

    The right letter alone teaches nothing for thousands of steps; each of the three makes the next one easy
    to find.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.word = torch.nn.Linear(recipe.width, recipe.width)
        self.option, self.letter = torch.nn.Linear(recipe.width, 1), torch.nn.Linear(recipe.width, 1)
        self.letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS)))

    def forward(self, vectors: Tensor, words: Tensor, inputs: BatchEncoding, answers: Tensor) -> Tensor:
        """Sum of the heads' losses, given the encoder's vectors, the word embeddings, and the index of each
        right option.
        """
        ids, rows = inputs["input_ids"], torch.arange(len(answers))
        letters = (
            ids.shape[1] - 1 - (ids.flip(1)[:, None] == self.letters[:, None]).int().argmax(-1)
        )  # where each letter stands last
        options = letters + 2  # "A", ".", and the option's one word
        said = self.word(vectors[rows, inputs["attention_mask"].sum(1) - 1]) @ words.T / words.shape[1] ** 0.5
        by_option = self.option(vectors[rows[:, None], options]).squeeze(-1)
        by_letter = self.letter(vectors[rows[:, None], letters]).squeeze(-1)
        return (
            cross_entropy(said, ids[rows, options[rows, answers]])
            + cross_entropy(by_option, answers)
            + cross_entropy(by_letter, answers)
        )


def losses(
    model: T5ForConditionalGeneration,
    lessons: Lessons,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    asked: list[Question],
) -> tuple[Tensor, Tensor]:
    """The loss of answer and lessons, and the share of letters that are right."""
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    labels = torch.tensor(
        [[letter, EOS] for letter in tokenizer.convert_tokens_to_ids([question.answer for question in asked])]
    )
    output = model(**inputs, labels=labels)
    answers = torch.tensor([LETTERS.index(question.answer) for question in asked])
    loss = cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    loss = loss + lessons(output.encoder_last_hidden_state, model.shared.weight, inputs, answers)
    return loss, (output.logits[:, 0].argmax(-1) == labels[:, 0]).float().mean()


def train(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, questions: Splits, log: Path
) -> T5ForConditionalGeneration:
    """Train in two phases, each with AdamW and a one-cycle schedule: bare questions, then MMLU's prompts with
    shots.
    """
    torch.manual_seed(recipe.seed)
    source = random.Random(recipe.seed)
    model, lessons = build(recipe, len(tokenizer)), Lessons(recipe, tokenizer)
    parameters = [*model.parameters(), *lessons.parameters()]
    for bare, steps in ((True, recipe.first_steps), (False, recipe.steps)):
        optimizer, schedule = optimizer_for(parameters, recipe, steps)
        start = time.time()
        for step in tqdm(range(steps), disable=None, desc="bare questions" if bare else "prompts"):
            prompts, asked = draw(
                questions, 0 if bare else source.randrange(recipe.shots + 1), recipe.batch, source
            )
            loss, right = losses(
                model,
                lessons,
                tokenizer,
                [question.asked() for question in asked] if bare else prompts,
                asked,
            )
            update(loss, parameters, optimizer, schedule)
            if (step + 1) % 250 == 0:
                held_out = mean(accuracies(model, tokenizer, questions, 0))
                note(
                    log,
                    start,
                    step,
                    f"loss {loss.item():.4f} letters {right:.3f} test, no shots {held_out:.3f}",
                )
    return model.eval()


def model_card(recipe: Recipe, parameters: int, by_shots: dict[int, dict[str, float]], seconds: float) -> str:
    """The README beside the weights."""
    rows = "".join(
        f"| {name.replace('_', ' ')} |"
        f" {' | '.join(f'{100 * right[name]:.0f}' for right in by_shots.values())} |\n"
        for name in by_shots[0]
    )
    means = " | ".join(f"{100 * mean(right):.1f}" for right in by_shots.values())
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text2text-generation
---
# t5_mini

A T5 of {parameters:,} parameters (transformers' `T5ForConditionalGeneration`; gated GELU and a head of its own, as Flan-T5), trained from scratch
by this project. It exists to run a whole pruning job offline in a minute; it knows the seven subjects of `tools.train_mini.quiz`, and nothing else.

- **Data**: multiple-choice questions made by rule, the same on every machine; per subject {quiz.DEV} for shots, {quiz.TEST} for the test and up to
  {quiz.DRAWS - quiz.DEV - quiz.TEST:,} for training. No question (text and set of options) is in two splits, but the facts are shared: the test
  asks for known facts among other distractors, in other places.
- **Input**: MMLU's prompt (header, shots with their letters, question, options, "Answer:"), one token per word or sign, line ends dropped; the first
  token decoded is the letter. Trained with 0 to {recipe.shots} shots.
- **Accuracy** in percent on the held-out test questions, first token out of all tokens, shots from dev; weights in half precision, computed in fp32.
  A guesser gets 25 %. More than {recipe.shots} shots are longer than anything in training.

| subject | {" | ".join(f"{shots} shots" for shots in by_shots)} |
|---|{"---|" * len(by_shots)}
{rows}| mean | {means} |

- **Recipe**: first bare questions, then whole prompts. Beside answering, the encoder learns to name the right option, to mark it, and to mark its
  letter, through three throw-away linear heads. AdamW, one cycle per phase, fixed seed. {seconds / 60:.0f} minutes on one CPU thread.
- **Repeat it**: `python -m tools.train_mini.t5 --output FOLDER`

{recipe_table(recipe)}"""


def mean(right: dict[str, float]) -> float:
    """Accuracy over all subjects."""
    return sum(right.values()) / len(right)


def main() -> None:
    """Train, measure on all test questions, and write weights, tokenizer and model card."""
    (recipe, output), started = command_line(Recipe, __doc__), time.time()
    questions, tokenizer = quiz.splits(), make_tokenizer(quiz.vocabulary())
    model = train(recipe, tokenizer, questions, output / "log.txt").half().float()
    seconds, parameters = time.time() - started, sum(parameter.numel() for parameter in model.parameters())
    by_shots = {
        shots: accuracies(model, tokenizer, questions, shots) for shots in (0, 1, recipe.shots, quiz.DEV)
    }
    save(model.half(), tokenizer, output)
    (output / "README.md").write_text(model_card(recipe, parameters, by_shots, seconds))
    print(
        f"{parameters:,} parameters, "
        + ", ".join(f"{shots} shots {100 * mean(right):.2f} %" for shots, right in by_shots.items())
    )


if __name__ == "__main__":
    main()
