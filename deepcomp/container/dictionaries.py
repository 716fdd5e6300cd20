"""What indices are full of, the commonest last: deflate refers back to these bytes from the first one on.

Part of the format: none is ever changed. `docs/format.md`, section 2, has them too.
"""

from __future__ import annotations

from deepcomp.wire import text

__all__ = ["IN_COLUMNS", "LISTED"]

LISTED = (
    b"num_batches_trackedrunning_varrunning_meanembeddings.position_embeddings.weighttoken_type_embeddings"
    b"encoder.layers.0.self_attn.in_proj_weightout_proj.biasattention.self.query.weightkey.value.output.dense."
    b"LayerNorm.weight_ih_l0weight_hh_l0bias_ih_l0bias_hh_l0norm1.norm2.linear1.linear2.downsample.0.features."
    b"layer1.0.conv1.weightlayer2.0.bn1.biaslayer3.0.conv2.bn2.classifier.linear.conv3.conv2.conv1."
    b'{"recipe": "deep-compression", "seed": 0, "version": "0.1.0"}'
    b'{"recipe": "lossless", "seed": 0, "version": "0.1.0"}'
    b"fc3.biasfc3.weightfc2.biasfc2.weightfc1.biasfc1.weight"
)

_NAMES = """
embedding.weight encoder.layers.0.self_attn.in_proj_weight encoder.layers.0.self_attn.out_proj.bias
encoder.layers.0.linear1.weight encoder.layers.0.norm1.weight attention.self.query.weight attention.output.dense.bias
attention.output.LayerNorm.weight rnn.weight_ih_l0 rnn.bias_hh_l0 features.0.weight features.0.bias
classifier.1.weight classifier.1.bias 0.weight 0.bias 2.weight 2.bias
layer1.0.bn1.bias layer1.0.bn1.num_batches_tracked layer1.0.bn1.running_mean layer1.0.bn1.running_var
layer1.0.bn1.weight layer1.0.conv1.weight layer1.0.conv2.weight layer2.0.downsample.0.weight linear.bias linear.weight
conv1.weight conv1.bias conv2.weight conv2.bias fc1.weight fc1.bias fc2.weight fc2.bias fc3.weight fc3.bias
bn1.weight bn1.bias bn1.running_mean bn1.running_var bn1.num_batches_tracked bn1.running_mean bn1.running_var bn1.weight
conv1.bias conv1.weight conv2.bias conv2.weight fc1.bias fc1.weight fc2.bias fc2.weight fc3.bias fc3.weight
"""

# Types, shapes, forms, numbers of symbols and tables of tensors: batch norms, convolutions, codebooks, grids.
_COLUMNS = """
00001d010100001d010100
011000011001100110012000012001200120014000014001400140
04101003030420100303042020030304402003030440400303
0104010401010505010102010a020a
018102018102012083080288010180018308028801800180018083080288
07950201020000
01800180018001800180018001800180
058e0802000200000180058e0802000200000120058e080200020000058e080200020000
058e100201020000058e10020102000005
021002100210022002200220041004200440
05010501050100010001000100010001
000000000000000000000000000000000000000000000000
"""

# Operations: attention, shortcuts, batch norm between convolutions, a small network from its inputs to its outputs.
_GRAPHS = """
1c04000b8218010119030012221f06201000040f00141d0100
2d03000f000f0c2502003302020202820182010b07000104131212131212131212820c0b0500010413222213121213120e0200280e021800
2702001322320a0300010100
0c0900010101010c17025702140d01000b050001041312121312120c0900010101010c17025702140b05000104131212131212
040304030403040304030403010178000200010178000400020002
0b030001010d01001102001322220b030001011102001322220d0100
100200120a0a030001010d01000a0300010100
"""

_METADATA = (
    b'", "seed": 0, "source": {"command": "'
    b'{"recipe": "lossless", "seed": 0, "version": "0.1.0"}'
    b'{"recipe": "deep-compression", "seed": 0, "version": "0.1.0"}'
    b'{"recipe": "uniform", "seed": 0, "version": "0.1.0"}'
    b'{"recipe": "smallest", "seed": 0, "version": "0.1.0"}'
)

IN_COLUMNS = b"".join(map(text, _NAMES.split())) + bytes.fromhex(_COLUMNS + _GRAPHS) + _METADATA
