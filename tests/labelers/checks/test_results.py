"""Checks of what labelers return, and errors of their code."""

import copy

import numpy as np
import pytest
import torch

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.labelers.base import LabelerEntry
from ldmprobe_core.labelers.checks.results import CheckedLabeler, LabelerError, load_checked
from ldmprobe_core.labelers.checks.trial import trial_problems
from ldmprobe_core.labelers.functions import FunctionLabeler
from ldmprobe_core.labelers.registry import as_entry, check_labeler, register_labeler
from ldmprobe_core.study.probe_sections import LabelerSpec
from tasks.retries import is_transient

CPU = torch.device("cpu")
IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


class Returning:
    """Labeler object that returns one result; without units and classes."""

    def __init__(self, result):
        self.result = result

    def __call__(self, images):
        return self.result


def function_that_returns(result):
    return FunctionLabeler(lambda images: result)


@pytest.fixture(params=[Returning, function_that_returns], ids=["class", "function"])
def returning(request):
    """Function from a result to a checked labeler of shading that returns it."""
    return lambda result: CheckedLabeler("shading", "mine", request.param(result), None, True)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (np.ma.masked_equal(np.array([[[1, 7], [7, 2]]]), 7), [[[1, np.nan], [np.nan, 2]]]),
        (torch.tensor([[[1.0, 2], [3, 4]]], requires_grad=True), [[[1, 2], [3, 4]]]),
        (torch.tensor([[[1.0, 2], [3, 4]]], dtype=torch.float64), [[[1, 2], [3, 4]]]),
        (np.array([[[1, 2.5], [3, None]]], dtype=object), [[[1, 2.5], [3, np.nan]]]),
        (np.array([[[True, False], [False, True]]]), [[[1, 0], [0, 1]]]),
        ([[[True, False], [False, True]]], [[[1, 0], [0, 1]]]),
    ],
)
def test_results_of_every_kind_of_labeler_are_converted_without_loss(returning, result, expected):
    labels = returning(result)(np.zeros((1, 2, 2, 3), np.uint8))
    assert labels.dtype == np.float32
    assert type(labels) is np.ndarray
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("dtype", ["c8", "c16", "M8[s]", "m8[s]", "U3", "V4"])
def test_values_that_are_not_real_numbers_are_refused(returning, dtype):
    with pytest.raises(UserError, match=r"^labels\.shading: .*not an array of numbers.*Fix: ret"):
        returning(np.zeros(IMAGES.shape[:3], dtype))(IMAGES)


@pytest.mark.parametrize(
    "result",
    [np.zeros((2, 4)), np.zeros((2, 5, 4)), np.zeros((2, 4, 4, 1)), "text", None, [[1], [1, 2]]],
)
def test_results_of_another_shape_are_refused(returning, result):
    with pytest.raises(UserError, match=r"^labels\.shading: the labeler 'mine' returned .* Fix: "):
        returning(result)(IMAGES)


def test_an_array_that_the_labeler_fills_again_is_copied(returning):
    kept = np.zeros((2, 4, 4), np.float32)
    labels = returning(kept)(IMAGES)
    kept[:] = 1
    assert not labels.any()


def test_a_labeler_without_units_and_classes_gets_them(returning):
    labeler = returning(np.zeros((2, 4, 4)))
    assert labeler.units in ("as Returning returns", "as <lambda> returns")
    assert labeler.classes == ()


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(3), ValueError("no\nsuch\n thing")])
@pytest.mark.parametrize("made", ["class", "function"])
def test_an_exception_of_a_labeler_names_the_property_in_one_line(made, error):
    def raising(images):
        raise error

    class Raising:
        def __init__(self, spec, device):
            pass

        def __call__(self, images):
            raise error

    entry = as_entry(raising if made == "function" else Raising)
    labeler = load_checked(entry, "shading", LabelerSpec(name="raising"), CPU, None)
    with pytest.raises(RunError) as failure:
        labeler(IMAGES)
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    sentence = str(failure.value)
    assert sentence.startswith(f"labels.shading: the labeler 'raising' failed ({cause}). Fix: ")
    assert "\n" not in sentence
    assert sentence.count("Fix: ") == 1
    assert "begin a new run" in sentence


def test_an_interrupt_passes_through_a_labeler():
    def interrupted(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CheckedLabeler("shading", "mine", interrupted, None, True)(IMAGES)


@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("bad\ninit")])
def test_an_exception_while_a_labeler_is_loaded_names_the_property(error):
    def load(spec, device):
        raise error

    cause = " ".join(f"{type(error).__name__}: {error}".split())
    with pytest.raises(LabelerError) as failure:
        load_checked(LabelerEntry(load), "depth", LabelerSpec(name="mine"), CPU, None)
    assert str(failure.value).startswith(
        f"labels.depth: the labeler 'mine' cannot be loaded ({cause}). Fix: "
    )


def test_an_exception_while_weights_are_located_names_the_property():
    def locate(spec):
        raise SystemExit(0)

    entry = LabelerEntry(lambda spec, device: None, locate)
    register_labeler("depth", "lost", entry)
    with pytest.raises(UserError, match=r"^labels\.depth: .* weights \(SystemExit: 0\)\. Fix: "):
        check_labeler("depth", LabelerSpec(name="lost"))


def test_an_error_with_a_remedy_of_its_own_keeps_it():
    def refusing(images):
        raise UserError("images: too small (4). Fix: take larger ones")

    with pytest.raises(UserError) as failure:
        CheckedLabeler("depth", "mine", refusing, None, True)(IMAGES)
    sentence = "labels.depth is 'mine': images: too small (4). Fix: take larger ones"
    assert str(failure.value) == sentence


def test_a_labeler_that_fails_for_the_network_is_tried_again():
    def failing(error):
        def labeler(images):
            raise error

        with pytest.raises(LabelerError) as failure:
            CheckedLabeler("depth", "mine", labeler, None, True)(IMAGES)
        return failure.value

    assert is_transient(failing(ConnectionResetError(104, "reset")))
    assert not is_transient(failing(ValueError("shapes")))


def test_attributes_of_the_labeler_remain():
    labeler = Returning(None)
    labeler.sign = -1
    checked = CheckedLabeler("depth", "mine", labeler, None, True)
    assert checked.sign == copy.deepcopy(checked).sign == -1
    assert not hasattr(checked, "other")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ((), "tells 0 classes apart. Fix: list at least two"),
        (("ball",), "tells 1 classes apart. Fix: list at least two"),
    ],
)
@pytest.mark.parametrize("is_own", [True, False])
def test_class_labelers_need_two_classes_in_a_new_run_alone(classes, words, is_own):
    labeler = Returning(None)
    labeler.classes = classes
    checked = CheckedLabeler("class", "mine", labeler, None, is_own)  # as a former run loads it
    (problem,) = trial_problems({"class": checked}, (8, 8), elsewhere=True)
    assert problem.startswith(f"labels.class: the labeler 'mine' {words}")


def test_repeated_names_of_classes_are_numbered():
    labeler = Returning(np.zeros((2, 4)))
    labeler.classes = ["crane", "cup", "crane", "crane"]
    checked = CheckedLabeler("class", "mine", labeler, None, True)
    assert checked.classes == ("crane", "cup", "crane (2)", "crane (3)")
    assert checked(IMAGES).shape == (2, 4)


def test_tensors_of_all_kinds_are_labels(returning):
    values = torch.linspace(0, 1, 32).reshape(2, 4, 4)
    for made in (values.bfloat16(), values.half(), values.double(), values.to_sparse()):
        labels = returning(made)(IMAGES)
        assert labels.dtype == np.float32
        np.testing.assert_allclose(labels, values, atol=0.01)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize("is_own", [True, False])
def test_a_lack_of_memory_has_the_remedy_for_it(error, is_own):
    def large(images):
        raise error

    with pytest.raises(LabelerError, match=r"Fix: lower sampling\.batch or execution\.workers"):
        CheckedLabeler("depth", "mine", large, None, is_own)(IMAGES)
