"""minift.generation against transformers' `generate` and the samplers that it uses, and against the model without a cache."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from reference.test_causal_lm import model_of, twin
from tiny import byte_checkpoint
from twins import close

import convert
import train
from minift.errors import UserError
from minift.generation import Sampling, Writer, kept, last, open_writer
from minift.methods.surgery import lengthened, wrappers
from minift.pretrained import write as write_checkpoint
from minift.tasks.masked_lm import word_vectors

END = 256
PROMPTS = [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in ("the film was", "a", "never again, said")]
METHODS = [
    *("full", "lora:rank=2,sites=word", "prefix:length=3", "prefix:length=3,shift=true", "prefix:length=2,mlp=4", "bitfit"),
    *("prompt:length=3", "houlsby", "pfeiffer", "ia3", "dora:rank=2", "prefix:length=2+lora:rank=2"),
    "lora:rank=2,sites=qkv+prompt:length=2",
]


def writer_of(method: str = "full", **changes) -> Writer:
    return Writer(model_of(method, **changes).body, byte_checkpoint().tokenizer, END)


def write(writer: Writer, prompts: list[np.ndarray], **sampling) -> list:
    return last(writer.write([*enumerate(prompts)], Sampling(**sampling)))


def uncached(writer: Writer, prompt: np.ndarray, new_tokens: int) -> list[int]:
    """Greedy, the whole text through the model for each token."""
    ids = prompt.tolist()
    with torch.no_grad():
        for _ in range(new_tokens):
            hidden = writer.body(torch.tensor([ids])).hidden[:, -1]
            ids.append(int(F.linear(hidden, word_vectors(writer.body)).argmax()))
            if ids[-1] == END:
                break
    return [token for token in ids[len(prompt) :] if token != END]


def generate(reference, prompts: list[np.ndarray], **flags) -> list[list[int]]:
    """Of transformers, padded on the left."""
    S = max(map(len, prompts))
    ids = torch.tensor(np.stack([np.pad(one, (S - len(one), 0), constant_values=END) for one in prompts]))
    mask = torch.tensor(np.stack([np.pad(np.ones_like(one), (S - len(one), 0)) for one in prompts]))
    made = reference.generate(ids, attention_mask=mask, pad_token_id=END, eos_token_id=END, **flags)[:, S:].tolist()
    return [row[: row.index(END)] if END in row else row for row in made]


def test_greedy_is_that_of_transformers_token_by_token():
    ended = 0
    for seed in range(4):
        writer = writer_of()
        with torch.no_grad():
            writer.body.embeddings.position.weight.mul_(1 + seed)  # other texts
            writer.body.embeddings.word.weight[END] *= 2.5  # that end, some of them
        expected = generate(twin(writer.body), PROMPTS, max_new_tokens=30, do_sample=False)
        found = write(writer, PROMPTS, new_tokens=30)
        assert [one.tokens for one in found] == expected
        ended += sum(one.over == "end of text" for one in found)
        for one in found:
            assert one.over == ("end of text" if len(one.tokens) < 30 else "number of tokens")
    assert 0 < ended < 12, "both ways to end should be seen"


@pytest.mark.parametrize("method", METHODS)
def test_with_the_cache_every_method_writes_what_it_does_without(method):
    writer = writer_of(method)
    before, taken = {name: type(m) for name, m in wrappers(writer.body).items()}, lengthened(writer.body)
    expected = [uncached(writer, prompt, 12) for prompt in PROMPTS]
    together = write(writer, PROMPTS, new_tokens=12)
    alone = [write(writer, [prompt], new_tokens=12)[0] for prompt in PROMPTS]
    assert [one.tokens for one in together] == [one.tokens for one in alone] == expected
    assert {name: type(m) for name, m in wrappers(writer.body).items()} == before and lengthened(writer.body) == taken
    assert len({tuple(one) for one in expected}) > 1, "the prompt should matter"


def test_logits_with_the_cache_are_those_without(monkeypatch):
    """Not the choice alone: every row of every step, in float64, with padding on the left."""
    writer, seen = writer_of("lora:rank=2,sites=word/qkv+prompt:length=3"), []
    monkeypatch.setattr(Writer, "logits", lambda self, *given, plain=Writer.logits: seen.append(plain(self, *given)) or seen[-1])
    written = write(writer, PROMPTS, new_tokens=6)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([[*prompt.tolist(), *written[row].tokens]])
        with torch.no_grad():
            hidden = writer.body(ids).hidden[0, len(prompt) - 1 :]
            expected = F.linear(hidden, word_vectors(writer.body))
        for step in range(min(6, len(written[row].tokens) + 1)):
            close(seen[step][row], expected[step], f"row {row}, step {step}")


WAYS = [{"temperature": 0.7}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.3, "top_p": 0.8}]
WAYS += [{"temperature": 0.5, "top_k": 20, "top_p": 0.5}, {"temperature": 2.0, "top_k": 1}, {"temperature": 1.0, "top_p": 1e-6}]


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(way):
    logits = torch.randn(6, 257, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3
    kinds = {"temperature": transformers.TemperatureLogitsWarper, "top_k": transformers.TopKLogitsWarper}
    kinds["top_p"] = transformers.TopPLogitsWarper
    expected = logits
    for name, value in way.items():
        expected = kinds[name](value)(None, expected)
    close(kept(logits, Sampling(**way)), expected.softmax(-1), "probabilities")


def test_samples_have_that_distribution_and_do_not_depend_on_the_rows_beside():
    writer, way = writer_of(), {"temperature": 1.5, "top_k": 6, "new_tokens": 1}
    drawn = [one.tokens[0] for one in write(writer, [PROMPTS[0]] * 4000, **way) if one.tokens]
    with torch.no_grad():
        logits = F.linear(writer.body(torch.from_numpy(PROMPTS[0])[None]).hidden[:, -1], word_vectors(writer.body))
    p = kept(logits, Sampling(**way))[0]
    tokens = p.nonzero().squeeze(1).tolist()
    chi2 = sum((drawn.count(token) - 4000 * p[token].item()) ** 2 / (4000 * p[token].item()) for token in tokens if token != END)
    assert {*drawn} <= {*tokens} and chi2 < 25  # 5 degrees of freedom: beyond 20.5 with a probability of 0.001; the seed is fixed
    way = {"temperature": 1.0, "new_tokens": 8}
    together = write(writer, PROMPTS, **way)
    alone = [last(writer.write([(i, prompt)], Sampling(**way)))[0] for i, prompt in enumerate(PROMPTS)]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_stop_strings_and_the_window_end_a_text():
    writer = writer_of(n_positions=30)
    whole = write(writer, PROMPTS[:1], new_tokens=100)[0]
    assert whole.over == "window" and len(whole.tokens) == 30 - len(PROMPTS[0]) + 1
    stop = bytes(whole.tokens[5:7]).decode("latin-1") if max(whole.tokens[5:7]) < 128 else whole.text[3:5]
    one = write(writer, PROMPTS[:1], new_tokens=100, stop=(stop,))[0]
    assert one.over == "stop string" and one.text == whole.text[: whole.text.index(stop)]
    with pytest.raises(UserError, match="a prompt of 40 tokens; the window of the model takes from 1 to 30"):
        write(writer, [np.zeros(40, dtype=np.int64)])


def test_what_is_shown_while_a_text_is_written_is_never_taken_back():
    """Half a character is held back, and what may be the start of a stop string."""
    writer, shown = writer_of(), [""]
    for text, over in (
        ("a", None),
        ("a\ufffd", None),
        ("aé", None),
        ("aé\n", None),
        ("aé\n#", None),
        ("aé\nx", None),
        ("aé\nx", "window"),
    ):
        one = type(whole := write(writer, PROMPTS[1:2], new_tokens=1)[0])(whole.tokens, text, over)
        shown.append(one.settled(("\n##",)))
    assert shown == ["", "a", "a", "aé", "aé", "aé", "aé\nx", "aé\nx"]
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


def test_a_text_that_is_not_finished_leaves_the_body_as_it_was():
    writer = writer_of("prompt:length=2")
    before = [(name, type(module)) for name, module in writer.body.named_modules()]
    steps = writer.write([(0, PROMPTS[0])], Sampling(new_tokens=5))
    next(steps)
    next(steps)
    assert [(name, type(module)) for name, module in writer.body.named_modules()] != before
    steps.close()
    assert [(name, type(module)) for name, module in writer.body.named_modules()] == before


@pytest.mark.parametrize(("method", "to"), [("full", "hf"), ("lora:rank=2", "hf"), ("lora:rank=2", "peft")])
def test_a_run_that_went_out_writes_the_same_in_transformers_and_peft(tmp_path, method, to):
    write_checkpoint(tmp_path / "base", byte_checkpoint())
    (tmp_path / "texts.txt").write_text("the film was good\nthe food was bad\n" * 10)
    flags = ["--task", "causal-lm", "--train", str(tmp_path / "texts.txt"), "--model", str(tmp_path / "base"), "--method", method]
    flags += ["--max-length", "40", "--lr", "1e-2", "--precision", "float32", "--epochs", "1", "--quiet"]
    train.main([*flags, "--out", str(tmp_path / "run")])
    convert.main([str(tmp_path / "run"), "--to", to, "--out", str(tmp_path / "out")])
    if to == "hf":
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert type(model) is transformers.GPT2LMHeadModel
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert tokenizer(PROMPTS[0].astype(np.uint8).tobytes().decode())["input_ids"] == PROMPTS[0].tolist()
        assert tokenizer.eos_token_id == END
    else:
        peft = pytest.importorskip("peft")
        convert.main([str(tmp_path / "base"), "--to", "hf", "--out", str(tmp_path / "hf")])
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
        model = peft.PeftModel.from_pretrained(base, tmp_path / "out")
        assert model.peft_config["default"].task_type == "CAUSAL_LM"
    found = write(open_writer(str(tmp_path / "run")), PROMPTS, new_tokens=20)
    padded = [torch.from_numpy(prompt)[None] for prompt in PROMPTS]
    for one, ids in zip(found, padded, strict=True):
        made = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False,
                                     pad_token_id=END, eos_token_id=END)[0, ids.shape[1] :].tolist()  # fmt: skip
        assert one.tokens == (made[: made.index(END)] if END in made else made)
