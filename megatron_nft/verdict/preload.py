"""Imported by the fork server of verdict/pool.py, and by nothing else: what is warm here is warm in every worker."""

from megatron_nft.verdict.math_answer import warm_up

warm_up()
