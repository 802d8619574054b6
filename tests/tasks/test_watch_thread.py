"""The end of a watched block of code."""

from tasks.watch_thread import WatchThread


class LastWord(WatchThread):
    """Notes something after the block of code has ended, as a watch within a request does."""

    def __init__(self) -> None:
        super().__init__("last word")
        self.noted: list[int] = []

    def keep_looking(self) -> None:
        self.over.wait()
        self.noted.append(sum(range(1_000_000)))


def test_block_ends_after_its_watch():
    with LastWord() as watch:
        pass
    assert watch.noted == [499_999_500_000]
