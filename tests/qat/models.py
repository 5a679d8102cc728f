"""Small models for the training worker."""

from onnx import parser

CLASSIFIER = """
<ir_version: 10, opset_import: ["" : 17]>
small (float[N,4] x, int64[N] label) => (float loss, float[N,3] logits)
<float[4,5] w = {0.3,-0.2,0.5,0.1,-0.4, 0.2,0.6,-0.3,0.4,0.1, -0.5,0.2,0.3,-0.1,0.6, 0.1,-0.6,0.2,0.5,-0.2},
 float[5,3] v = {0.4,-0.1,0.3, -0.2,0.5,0.1, 0.6,-0.3,0.2, 0.1,0.4,-0.5, -0.3,0.2,0.6},
 float[5] mask = {1, 1, 1, 1, 0}>
{
    masked = Mul(w, mask)
    h = MatMul(x, masked)
    r = Relu(h)
    logits = MatMul(r, v)
    loss = SoftmaxCrossEntropyLoss(logits, label)
}
"""

NORMALIZED = """
<ir_version: 8, opset_import: ["" : 17]>
normalized (float[N,2,3,3] x) => (float loss)
<float[2] gamma = {1, 2}, float[2] beta = {0, 1}, float[2] mean = {0, 0}, float[2] var = {1, 1}>
{
    y, new_mean, new_var = BatchNormalization<training_mode=1, momentum=0.5>(x, gamma, beta, mean, var)
    square = Mul(y, y)
    loss = ReduceMean<keepdims=0>(square)
}
"""

ROUNDED = """
<ir_version: 8, opset_import: ["" : 17]>
rounded (float[N] x) => (float loss)
<float[1] w = {1.5}>
{
    y = Mul(x, w)
    z = Round(y)
    loss = ReduceMean<keepdims=0>(z)
}
"""


def model(text):
    return parser.parse_model(text).SerializeToString()
