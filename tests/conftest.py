"""One thread: results and times of the tests do not depend on the machine's cores."""

import torch

torch.set_num_threads(1)
