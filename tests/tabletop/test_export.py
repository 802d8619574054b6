"""Export of the model folder."""

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.study.model_record import RECORD
from ldmprobe_core.tabletop.export import save_record


def test_save_record_writes_the_record_that_ships(tmp_path):
    save_record(tmp_path)
    assert (tmp_path / RECORD).read_bytes() == (MODEL_FOLDER / RECORD).read_bytes()
