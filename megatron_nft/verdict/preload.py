"""Imported by the fork server of verdict/pool.py, and by nothing else: what is warm here is warm in every worker."""

import warnings

from megatron_nft.verdict.math_answer import warm_up

# multiprocessing runs the driver's main module again in each worker, and runpy warns that it is there already: it is,
# on purpose, since pool.py preloads it.
warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package", category=RuntimeWarning)
warm_up()
