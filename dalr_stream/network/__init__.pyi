# What is public of `dalr_stream.network` beside the names of the front: the one list, as in `../__init__.pyi`.

from dalr_stream.network.layers.spec import LayerSpec as LayerSpec
from dalr_stream.network.layers.spec import select_layers as select_layers
from dalr_stream.network.layers.spec import weights_of as weights_of
from dalr_stream.network.measure.accuracy import accuracy as accuracy
from dalr_stream.network.measure.prefix import Cut as Cut
from dalr_stream.network.measure.prefix import PrefixCache as PrefixCache
from dalr_stream.network.saved.weights import load_weights as load_weights
from dalr_stream.network.saved.weights import save_weights as save_weights
from dalr_stream.network.structure.graph import Structure as Structure
from dalr_stream.network.surgery.compress import Replacement as Replacement
from dalr_stream.network.surgery.compress import parameter_count as parameter_count
