import pytest
import torch

from trilemma.conditions.base import Condition
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.errors import UserError


def labels() -> LabelCondition:
    torch.manual_seed(0)
    return LabelCondition(10, 6)


def test_labels_are_looked_up_and_come_with_their_null_twin():
    encoder = labels()
    condition = encoder(torch.tensor([3, 0, 9]), num=3)
    assert torch.equal(condition.pooled, encoder.embedding.weight[[3, 0, 9]])
    assert torch.equal(condition.null.pooled, encoder.embedding.weight[[10, 10, 10]])
    assert len(condition) == len(condition.null) == 3
    assert encoder.has_null


def test_dropped_labels_and_none_are_the_null_condition():
    encoder = labels()
    raw = torch.tensor([3, 0, 9])
    dropped = encoder(raw, num=3, drop=torch.tensor([True, False, True]))
    assert torch.equal(dropped.pooled, encoder.embedding.weight[[10, 0, 10]])
    assert torch.equal(encoder(None, num=3).pooled, dropped.null.pooled)


def test_the_null_embedding_is_learned():
    encoder = labels()
    encoder(torch.tensor([3]), num=1, drop=torch.tensor([True])).pooled.sum().backward()
    assert encoder.embedding.weight.grad[10].all()
    assert not encoder.embedding.weight.grad[:10].any()


def test_as_many_labels_as_images():
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        labels()([1, 2, 3], num=4)


@pytest.mark.parametrize("raw", [None, [0, 9], torch.tensor([4]), 7])
def test_good_labels_pass(raw):
    labels().check(raw)


@pytest.mark.parametrize("raw", [[0, 10], -1, torch.tensor([4, 99]), "seven", ["1"], 2.5, True])
def test_bad_labels_name_the_range(raw):
    with pytest.raises(UserError, match="labels are 0 to 9"):
        labels().check(raw)


def test_no_condition_carries_the_batch_size_and_refuses_labels():
    condition = NoCondition()(torch.tensor([1, 2]), num=2)
    assert len(condition) == 2
    assert condition.pooled is condition.tokens is condition.null is None
    NoCondition().check(None)
    with pytest.raises(UserError, match="unconditional"):
        NoCondition().check(3)


def test_raw_labels_are_kept_whether_they_steer_the_network_or_not():
    for encoder in (labels(), NoCondition()):
        for raw in ([3, 0, 9], torch.tensor([3, 0, 9])):
            kept = encoder(raw, num=3).label
            assert kept.tolist() == [3, 0, 9]
            assert kept.dtype == torch.int64
        assert encoder(None, num=3).label is None
    assert labels()([3, 0], num=2, drop=torch.tensor([True, True])).label.tolist() == [3, 0]
    assert NoCondition()(["a", "b"], num=2).label is None
    assert labels().steers
    assert not NoCondition().steers


def test_an_encoder_takes_its_own_from_a_batch():
    batch = {"label": torch.tensor([3, 0]), "caption": ["a three", "a nought"], "index": torch.arange(2)}
    assert torch.equal(labels().raw_from(batch), batch["label"])
    assert NoCondition().raw_from(batch) is None
    with pytest.raises(UserError, match="condition=label needs a data set with labels"):
        labels().raw_from({"caption": ["a three"], "index": torch.arange(1)})
    with pytest.raises(UserError, match="condition=label needs a data set with labels"):
        LabelCondition(None, 6)


def test_examples_are_all_labels_in_turn():
    assert labels().examples(12) == [*range(10), 0, 1]
    assert NoCondition().examples(12) is None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "none"),
        ([*range(10), 0, 1], "label: all in turn"),
        ([7] * 12, "label: 7"),
        ([0, 7] * 6, "label: [0, 7]"),
        ([0, 7, 0], "label: [0, 7]"),
        (torch.tensor([0, 7, 0, 7]), "label: [0, 7]"),
        ([0], "label: 0"),
    ],
)
def test_labels_are_described_by_what_repeats(raw, words):
    assert labels().describe(raw) == words


def test_nothing_is_described_as_none():
    assert NoCondition().describe(None) == "none"


def test_labels_are_moved_and_stacked_where_all_have_them():
    labelled, bare = NoCondition()([1, 2], num=2), NoCondition()(None, num=2)
    assert labelled.to("meta").label.device.type == "meta"
    assert Condition.cat([labelled, labelled]).label.tolist() == [1, 2, 1, 2]
    assert Condition.cat([labelled, bare]).label is None


def test_cat_stacks_every_field():
    parts = [
        Condition(n, torch.randn(n, 4), torch.randn(n, 5, 3), torch.rand(n, 5) < 0.5, null=Condition(n)) for n in (2, 3)
    ]
    whole = Condition.cat(parts)
    assert len(whole) == 5
    for name in ("pooled", "tokens", "mask"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts]))
    assert whole.null is None


def test_cat_refuses_conditions_of_different_kinds():
    with pytest.raises(ValueError, match="different fields"):
        Condition.cat([Condition(2, torch.zeros(2, 4)), Condition(2)])


def test_to_moves_the_twin_too():
    condition = Condition(2, torch.zeros(2, 4), null=Condition(2, torch.ones(2, 4))).to("meta")
    assert condition.pooled.device.type == condition.null.pooled.device.type == "meta"
