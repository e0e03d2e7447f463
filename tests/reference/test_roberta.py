"""minift.models.roberta against transformers' RobertaModel and XLMRobertaModel: hidden states, pooled output, every gradient."""

from dataclasses import asdict

import peft
import pytest
import torch
import transformers
from tiny import tiny_roberta
from torch import Tensor, nn
from twins import close, hidden_states

from minift.formats.huggingface import names, to_huggingface
from minift.methods.prefix import prefix
from minift.methods.prompt import prompt
from minift.methods.surgery import delta, freeze
from minift.models.bert import Bert
from minift.models.roberta import Roberta, RobertaConfig

P = 4
PAD = 1
KINDS = {
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
}


def roberta(pool: str | None = "cls", **changes) -> Roberta:
    return tiny_roberta(pool=pool, **changes).double().eval()


def twin(body: Roberta, kind: str = "roberta") -> nn.Module:
    config, model = KINDS[kind]
    reference = model(config(**asdict(body.config)), add_pooling_layer=body.pooler is not None).double().eval()
    weights = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    reference.load_state_dict(to_huggingface(weights, body, ""), strict=True)
    return reference


def texts(side: str | None) -> tuple[Tensor, Tensor | None]:
    """Tokens of four rows and the mask, with padding on this side."""
    tokens = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    if side is None:
        return tokens, None
    mask = torch.arange(12) < torch.tensor([12, 7, 3, 1])[:, None]
    mask = mask.flip(1) if side == "left" else mask
    return tokens.masked_fill(~mask, PAD), mask


@pytest.mark.parametrize("side", [None, "right", "left"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["cls", None])
def test_twin_in_float64(kind, pool, side):
    body = roberta(pool)
    reference = twin(body, kind)
    tokens, mask = texts(side)
    expected = reference(tokens, None if mask is None else mask.long(), output_hidden_states=True)
    state = body(tokens, mask)
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    for ours, theirs in zip(hidden_states(body, tokens, mask, None), expected.hidden_states, strict=True):
        close(ours[real], theirs[real], "hidden states")
    weight = torch.randn(state.hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sums = [(state.hidden * weight)[real].sum(), (expected.last_hidden_state * weight)[real].sum()]
    if pool:
        close(state.pooled, expected.pooler_output, "pooled")
        sums = [sums[0] + state.pooled.square().sum(), sums[1] + expected.pooler_output.square().sum()]
    for total in sums:
        total.backward()
    theirs = dict(reference.named_parameters())
    for ours, name in names(body).items():
        close(body.get_parameter(ours).grad, theirs[name].grad, ours)


def test_padding_on_the_left_moves_nothing():
    body = roberta()
    (tokens, mask), (shifted, moved) = texts("right"), texts("left")
    for row, length in enumerate([12, 7, 3, 1]):
        shifted[row, 12 - length :] = tokens[row, :length]
    close(body(shifted, moved).hidden[moved], body(tokens, mask).hidden[mask], "hidden states")


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padding_id_within_the_text_and_positions_that_are_given(side):
    body = roberta()
    reference = twin(body)
    tokens, mask = texts(side)
    tokens[0, 4] = PAD
    close(body(tokens, mask).hidden[mask], reference(tokens, mask.long()).last_hidden_state[mask], "padding id")
    positions = torch.randint(2, 40, (4, 12), generator=torch.Generator().manual_seed(3))
    expected = reference(tokens, mask.long(), position_ids=positions).last_hidden_state
    close(body(tokens, mask, None, positions).hidden[mask], expected[mask], "positions")


def test_dropout_sits_where_the_reference_has_it():
    body = roberta(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    reference = twin(body).train()
    tokens, mask = texts("right")
    torch.manual_seed(3)
    ours = body(tokens, mask)
    torch.manual_seed(3)
    close(ours.pooled, reference(tokens, mask.long()).pooler_output, "pooled")


def test_initial_weights_and_the_longest_text():
    """As BERT's, with 0 in the rows of padding of both tables; the 512 tokens of 514 positions fit, and no more."""
    torch.manual_seed(0)
    body = Roberta(RobertaConfig(vocab_size=90, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    theirs = transformers.RobertaConfig()
    assert all(getattr(theirs, name) == value for name, value in asdict(RobertaConfig()).items())
    assert not body.embeddings.word.weight[PAD].any() and not body.embeddings.position.weight[PAD].any()
    assert abs(body.embeddings.position.weight.std() / 0.02 - 1) < 0.1
    body = roberta(max_position_embeddings=14)
    assert body.config.max_length == 12 and body(texts(None)[0]).pooled.isfinite().all()
    with pytest.raises(IndexError):
        body(torch.full((1, 13), 7))


def in_peft(body: Roberta, config: peft.PeftConfig) -> tuple:
    """((tokens, mask) -> hidden and pooled of the whole length, the embedding that peft trains)."""
    classifier = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**asdict(body.config))).double()
    classifier.roberta = twin(body)
    classifier.classifier = nn.Linear(16, 2)  # of a prefix peft hands the pooled output to it, which RoBERTa's own head cannot take
    model = peft.get_peft_model(classifier, config).double().eval()
    seen = []
    classifier.roberta.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def call(tokens, mask):
        model(tokens, None if mask is None else mask.long(), return_dict=True)
        return seen.pop()

    return call, model.prompt_encoder.default.embedding.weight


@pytest.mark.parametrize("side", [None, "right"])
def test_prompt_is_that_of_peft(side):
    body, (tokens, mask) = roberta(), texts(side)
    call, E = in_peft(body, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P))
    freeze(body)
    prompt(body, length=P, pooler="all")
    delta(body)["embeddings.word.E"].data.copy_(E)
    expected, state = call(tokens, mask), body(tokens, mask)
    real = slice(None) if mask is None else mask
    close(state.hidden[real], expected.last_hidden_state[:, P:][real], "hidden states")
    close(state.pooled, expected.pooler_output, "pooled")
    again = body(tokens, mask, None, body.embeddings.base.positions(tokens, mask, None))
    close(again.hidden[real], state.hidden[real], "with the positions given")


@pytest.mark.parametrize("side", [None, "right", "left"])
def test_prefix_is_that_of_peft(side):
    if int(transformers.__version__.partition(".")[0]) >= 5:
        pytest.skip("with transformers 5 peft knows no prefix tuning of a RoBERTa")
    body, (tokens, mask) = roberta(), texts(side)
    call, table = in_peft(body, peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P))
    freeze(body)
    prefix(body, length=P, shift=True)
    for i, tensor in enumerate(delta(body).values()):
        tensor.data.copy_(table.view(P, len(body.layers), -1)[:, i])
    expected, state = call(tokens, mask), body(tokens, mask)
    real = slice(None) if mask is None else mask
    close(state.hidden[real], expected.last_hidden_state[real], "hidden states")


def test_it_is_bert_but_for_the_positions():
    """With the positions that BERT counts, the same weights give the same."""
    body, (tokens, mask) = roberta(), texts("right")
    plain = Bert(body.config, "cls").double().eval()
    plain.load_state_dict(body.state_dict())
    assert torch.equal(plain(tokens, mask).hidden, body(tokens, mask, None, torch.arange(12)).hidden)
    assert body.SITES == plain.SITES and body.stages == plain.stages
