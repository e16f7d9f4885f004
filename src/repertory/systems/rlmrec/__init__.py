"""RLMRec: recommendation with representations that agree with text profiles (Ren et al. 2024)."""

from repertory.systems.rlmrec.alignment import Alignment, Contrastive, Generative, Triples
from repertory.systems.rlmrec.backbones import DCCF, GCCF, SGL, AutoCF, Backbone, Draws, LightGCN, SimGCL
from repertory.systems.rlmrec.graph import Bipartite, Edges
from repertory.systems.rlmrec.model import RLMRec, from_official_keys
from repertory.systems.rlmrec.objective import bpr, info_nce, reconstruction
from repertory.systems.rlmrec.ranking import Chosen, of_rankings, rank
from repertory.systems.rlmrec.simulation import simulated
from repertory.systems.rlmrec.system import RLMRecSystem
from repertory.systems.rlmrec.texts import Tfidf, WordLlama, described, embedded, parse_answer

__all__ = [
    "DCCF", "GCCF", "SGL", "Alignment", "AutoCF", "Backbone", "Bipartite", "Chosen", "Contrastive", "Draws", "Edges",
    "Generative", "LightGCN", "RLMRec", "RLMRecSystem", "SimGCL", "Tfidf", "Triples", "WordLlama", "bpr", "described",
    "embedded", "from_official_keys", "info_nce", "of_rankings", "parse_answer", "rank", "reconstruction", "simulated",
]  # fmt: skip
