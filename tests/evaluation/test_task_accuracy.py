"""How many tasks are right: known answers, of writers whose every word is known."""

import jax
import numpy as np
import pytest

from genai_jax.data.plain_chat import CHAT_SPECIALS, PlainChat
from genai_jax.data.tasks.split import FAMILIES, tasks
from genai_jax.data.tasks.task_sets import TaskConfig, held_out_tasks
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.decoding.results import Generated
from genai_jax.evaluation import task_accuracy
from genai_jax.evaluation.task_accuracy import (
    accuracies,
    answer_tasks,
    grade,
    measure_tasks,
    show_answers,
)
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

CHAT = PlainChat(ByteTokenizer(specials=CHAT_SPECIALS))
SHAPE = TransformerConfig(
    vocab_size=CHAT.tokenizer.vocab_size,
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    mlp_dim=32,
    max_length=96,
)


@pytest.fixture(scope="module")
def model():
    return LanguageModel(SHAPE, jax.random.key(0))


@pytest.fixture
def writer(monkeypatch):
    """Replaces the engine by one that writes what a function of the request's number says."""

    def install(write):
        class Writer:
            def __init__(self, model, **options):
                self.options = options

            def run(self, requests, check):
                check()
                made = []
                for number, request in enumerate(requests):
                    text, reason = write(number, request)
                    ids = CHAT.tokenizer.encode(text)
                    if reason == "stop":
                        ids = np.append(ids, CHAT.end_ids[0]).astype(np.int32)
                    made.append(_generated(ids, reason))
                return made

        monkeypatch.setattr(task_accuracy, "Engine", Writer)

    return install


def _generated(ids, reason):
    return Generated(**dict.fromkeys(Generated._fields) | {"tokens": ids, "reason": reason})


SOME = [tasks(FAMILIES, "easy", "held out", 0)[i] for i in range(12)]  # two of each family


def test_who_writes_the_right_answers_has_them_all(writer, model):
    writer(lambda i, request: (SOME[i].answer, "stop"))
    found = measure_tasks(model, CHAT, SOME)
    assert found == {f.name: 1.0 for f in FAMILIES} | {"all": 1.0}


def test_shares_are_of_families_and_all_is_their_mean(writer, model):
    """The first family has one right of two, the second two of two, others none."""
    right = {0, 1, 7}
    writer(lambda i, request: (SOME[i].answer if i in right else "?", "stop"))
    found = measure_tasks(model, CHAT, SOME)
    names = [f.name for f in FAMILIES]
    assert found[names[0]] == 0.5 and found[names[1]] == 1.0 and found[names[2]] == 0.0
    assert found["all"] == pytest.approx(1.5 / 6)
    # One more task of a family, wrong: its share falls, and all families still weigh the same.
    answered = answer_tasks(model, CHAT, SOME)
    more = accuracies([*answered, answered[6]])
    assert more[names[0]] == pytest.approx(1 / 3)
    assert more["all"] == pytest.approx((1 / 3 + 1) / 6)


def test_an_answer_that_does_not_end_is_wrong(writer, model):
    writer(lambda i, request: (SOME[i].answer, "length"))
    assert measure_tasks(model, CHAT, SOME)["all"] == 0


def test_what_is_asked_is_what_is_asked_for(writer, model):
    seen = []

    def write(number, request):
        seen.append(request)
        return "", "stop"

    writer(write)
    found = answer_tasks(model, CHAT, SOME[:2], samples=3, temperature=0.5, seed=7, max_tokens=9)
    assert [len(x.answers) for x in found] == [3, 3] and found[0].answers == ("",) * 3
    assert [request.seed for request in seen] == [7, 8, 9, 10, 11, 12]
    said = [[{"role": "user", "content": task.prompt}] for task in SOME[:2]]
    for i, ids in enumerate(CHAT.prompts(said)):
        assert all(request.prompt.tolist() == ids.tolist() for request in seen[3 * i : 3 * i + 3])
    assert {(r.max_tokens, r.sampling.temperature, tuple(r.stop_ids)) for r in seen} == {
        (9, 0.5, tuple(CHAT.end_ids))
    }


def test_someone_can_give_up(writer, model):
    def stop():
        raise KeyboardInterrupt

    writer(lambda i, request: ("", "stop"))
    with pytest.raises(KeyboardInterrupt):
        answer_tasks(model, CHAT, SOME, check=stop)


def test_answers_are_those_of_the_engine(model):
    """The real one: the likeliest tokens, in any batch."""
    some = SOME[:3]
    found = answer_tasks(model, CHAT, some, max_tokens=4)
    few = answer_tasks(model, CHAT, some, max_tokens=4, rows=2)
    assert [x.answers for x in found] == [x.answers for x in few]
    assert all(grade(x.task, x.answers[0]) >= x.grades[0] for x in found)
    assert show_answers(found, most=2).count("wrong, it is") == 2


def test_tasks_that_models_are_measured_by_are_always_the_same():
    one, other = (held_out_tasks(TaskConfig(held_out=2, hard_share=share)) for share in (0, 1))
    assert one == other and {k: len(v) for k, v in one.items()} == {"easy": 12, "hard": 12}
    assert all(task.difficulty == kind for kind, some in one.items() for task in some)
