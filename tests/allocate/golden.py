"""What the published implementations gave on ``tests.allocate.toy``: numbers, and none of their code.

Shares that blocks or layers keep, in pruning order, unless said otherwise. Made with CPU tensors and
PyTorch 2.13 by running the functions named here, with their data loaders replaced by the toy's tokens.
"""

# luuyin/OWL dddb7a4 (MIT), lib/prune_all.py, prune_wanda_outlier: M 5, lambda 0.08.
OWL_OUTLIERS = [1.992187, 2.34375, 2.5, 3.28125]  # percent
OWL_KEEP = {
    0.5: [0.4333333, 0.4769697, 0.4963636, 0.5933333],
    0.7: [0.2333333, 0.2769697, 0.2963636, 0.3933333],
}

# ironartisan/DLP 31d480f (Apache 2.0), lib/prune.py, get_dlp_ratios: alpha 0.15, which takes the mean.
DLP_MEAN_KEEP = {0.7: [0.4032723, 0.3795113, 0.3139441, 0.1032723]}
# BeiYazi0/LSA 1c28cae (no licence), layersp/dlp.py, DLP: its table of alpha, and the median.
DLP_MEDIAN_KEEP = {0.7: [0.4155009, 0.3782305, 0.2907677, 0.1155009]}

# The same, layersp/blk.py, blk_score: resp 0.5, and block 8 or the whole row.
LSA_KEEP = {
    (0.5, 8): [0.5240678, 0.5220987, 0.5097656, 0.4440678],
    (0.5, 48): [0.5239121, 0.522038, 0.5101378, 0.4439121],
    (0.7, 8): [0.3902545, 0.3828701, 0.336621, 0.09025449],
    (0.7, 48): [0.3896703, 0.3826425, 0.3380167, 0.0896703],
}
# blk_score_global: the sparsity of each layer at 0.7, lambda 0.07, block 8. As released, lsab gives the
# numbers of lsac: the branch that averages attention and the rest asks for the name blkb, as was given here.
LSA_SPARSITY = {
    "sublayer": [
        0.6627319,
        0.6627319,
        0.6627319,
        0.6627319,
        0.688535,
        0.688535,
        0.6648087,
        0.6648087,
        0.6648087,
        0.6648087,
        0.6901212,
        0.6901212,
        0.6762694,
        0.6762694,
        0.6762694,
        0.6762694,
        0.7010873,
        0.7010873,
        0.7285419,
        0.7285419,
        0.7285419,
        0.7285419,
        0.7653551,
        0.7653551,
    ],
    "layer": [
        0.6816276,
        0.6814939,
        0.6810134,
        0.6796217,
        0.6950459,
        0.6932265,
        0.682523,
        0.6829175,
        0.6824613,
        0.6801037,
        0.6962357,
        0.6936593,
        0.6877698,
        0.6915522,
        0.6860774,
        0.6860523,
        0.7064965,
        0.6946158,
        0.7072962,
        0.704009,
        0.7047685,
        0.7423176,
        0.7709849,
        0.6958668,
    ],
}

# The same, layersp/atp.py, ATP: the sparsity of each block at 0.7, beta 0.03, by the formula of main.py in
# wzhuang-xmu/ATP 56b8437 (no licence).
ATP_SPARSITY = [0.655, 0.685, 0.715, 0.745]

# The same, layersp/er.py, ER: the sparsity of each layer; at 0.1 the attention's layers stay dense.
ER_SPARSITY = {
    0.1: [0.0, 0.0, 0.0, 0.0, 0.1666667, 0.1666667],
    0.7: [0.625, 0.625, 0.625, 0.625, 0.75, 0.75],
}  # of the first block; all are alike

# haiquanlu/AlphaPruning 5f0e984 (MIT), lib/esd_utils.py, net_esd_estimator: alpha of each layer;
# lib/prune.py, ww_sparsity: the sparsity of each block at 0.7, epsilon 0.2.
ALPHA = {
    "peak": [
        1.130968,
        1.311284,
        1.139602,
        1.215277,
        1.746852,
        1.969382,
        1.216287,
        1.164541,
        1.182432,
        1.124646,
        1.79704,
        2.972168,
        2.571995,
        1.21617,
        1.461913,
        1.17227,
        1.636163,
        1.590917,
        1.292177,
        2.05863,
        1.071728,
        1.131104,
        1.640726,
        1.616385,
    ],
    "median": [
        2.22459,
        1.889204,
        2.094352,
        2.154723,
        3.958714,
        3.296051,
        2.251813,
        1.837829,
        2.09221,
        2.187248,
        2.929389,
        2.996928,
        2.086831,
        2.032162,
        1.965008,
        2.009938,
        2.509472,
        3.00758,
        1.87458,
        2.05863,
        2.308364,
        1.691248,
        2.499352,
        3.324952,
    ],
}
ALPHA_SPARSITY = {
    "peak": [0.5548682, 0.785338, 0.8323023, 0.6274915],
    "median": [0.892297, 0.696313, 0.5948647, 0.6165253],
}

# G-JWLee/TAMP e1dc9d1 (Apache 2.0), llava/pruners/layer_single_base_pruner.py, LayerSparsity: density_sum, a
# largest sparsity of the target plus 0.1, the first 7 tokens of a sample visual; the sparsity of each layer.
TAMP_IMPORTANCE = [
    2.255675,
    2.064711,
    2.338564,
    2.242522,
    2.422461,
    2.235503,
    2.275425,
    2.041528,
    2.113933,
    2.09526,
    2.438459,
    2.341447,
    2.109764,
    2.240475,
    2.312269,
    1.869107,
    2.26497,
    2.30448,
    2.222311,
    2.224131,
    2.128765,
    2.061229,
    1.987202,
    2.190737,
]
TAMP_SPARSITY = {
    0.5: [
        0.4257812,
        0.4414062,
        0.421875,
        0.4296875,
        0.5221354,
        0.5429688,
        0.4257812,
        0.4453125,
        0.4375,
        0.4375,
        0.5377604,
        0.5403646,
        0.4375,
        0.4296875,
        0.421875,
        0.4570312,
        0.5416666,
        0.5403646,
        0.4296875,
        0.4296875,
        0.4375,
        0.4414062,
        0.5494791,
        0.5442709,
    ],
    0.7: [
        0.625,
        0.640625,
        0.6210938,
        0.6289062,
        0.7226562,
        0.7434896,
        0.625,
        0.6445312,
        0.6367188,
        0.6367188,
        0.7382812,
        0.7408854,
        0.6367188,
        0.6289062,
        0.6210938,
        0.65625,
        0.7421875,
        0.7408854,
        0.6289062,
        0.6289062,
        0.6367188,
        0.640625,
        0.75,
        0.7447916,
    ],
}

# FarinaMatteo/multiflow 1835f1b (no licence), pruners/multiflow.py, MultiFlow.multimodal_distribution, for
# one modality: the sparsity of each layer.
MULTIFLOW_SPARSITY = {
    0.5: [
        0.609375,
        0.6289062,
        0.65625,
        0.5859375,
        0.6432292,
        0.6054688,
        0.546875,
        0.5429688,
        0.5234375,
        0.5625,
        0.5273438,
        0.4856771,
        0.4492188,
        0.4101562,
        0.4804688,
        0.4570312,
        0.4270833,
        0.46875,
        0.375,
        0.4101562,
        0.3945312,
        0.3710938,
        0.421875,
        0.4192708,
    ],
    0.7: [
        0.8320312,
        0.8476562,
        0.8632812,
        0.8007812,
        0.8645833,
        0.8632812,
        0.7421875,
        0.7773438,
        0.7421875,
        0.7578125,
        0.75,
        0.7122396,
        0.609375,
        0.609375,
        0.6484375,
        0.6835938,
        0.6158854,
        0.6367188,
        0.546875,
        0.5664062,
        0.5625,
        0.5390625,
        0.5898438,
        0.5911458,
    ],
}
