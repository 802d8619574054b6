"""Built-in sets of prompts."""

from ldmprobe_core.study.prompt_sets import tabletop_prompts


def test_tabletop_prompts_are_distinct_up_to_the_number_of_combinations():
    pairs = tabletop_prompts(240, 0)
    assert len(set(pairs)) == 240
    assert all(category in prompt for prompt, category in pairs)
