"""The sample configurations that AMCT's manual prints: each on one line, the comment's line break lost."""

QUANT = (
    '# global quantize parameter batch_num : 2 activation_offset : true skip_layers : "Opname" '
    'skip_layer_types:"Optype" do_fusion: true skip_fusion_layers : "Opname" common_config : { '
    "arq_quantize : { channel_wise : true quant_bits : 7 } ifmr_quantize : { search_range_start : 0.7 "
    "search_range_end : 1.3 search_step : 0.01 max_percentile : 0.999999 min_percentile : 0.999999 "
    "asymmetric : true } dmq_balancer : { migration_strength : 0.5 } } override_layer_types : { "
    'layer_type : "Conv2d" calibration_config : { arq_quantize : { channel_wise : false quant_bits : 6 } '
    "ifmr_quantize : { search_range_start : 0.8 search_range_end : 1.2 search_step : 0.02 max_percentile "
    ": 0.999999 min_percentile : 0.999999 asymmetric : false } dmq_balancer : { migration_strength : 0.5 "
    '} } } override_layer_configs : { layer_name : "Opname" calibration_config : { arq_quantize : { '
    "channel_wise : true } ifmr_quantize : { search_range_start : 0.8 search_range_end : 1.2 search_step "
    ": 0.02 max_percentile : 0.999999 min_percentile : 0.999999 asymmetric : false } dmq_balancer : { "
    "migration_strength : 0.5 } } }"
)
HFMG = (
    "# global quantize parameter activation_offset : true batch_num : 2 ... common_config : { "
    "hfmg_quantize : { num_of_bins : 4096 asymmetric : false } ... }"
)
ADA_ROUND = (
    "common_config : { ada_quantize : { num_iteration : 10000 warm_start : 0.2 reg_param : 0.01 "
    "beta_range_start : 20 beta_range_end : 2 channel_wise : false } }"
)
DMQ_BALANCER = (
    '# global quantize parameter batch_num : 2 activation_offset : true skip_layers : "Opname" '
    'skip_layer_types:"Optype" do_fusion: true skip_fusion_layers : "Opname" common_config : { '
    "arq_quantize : { channel_wise : true } ifmr_quantize : { search_range_start : 0.7 search_range_end :"
    " 1.3 search_step : 0.01 max_percentile : 0.999999 min_percentile : 0.999999 asymmetric : true } "
    'dmq_balancer : { migration_strength : 0.5 } } override_layer_types : { layer_type : "Optype" '
    "calibration_config : { arq_quantize : { channel_wise : false } ifmr_quantize : { search_range_start "
    ": 0.8 search_range_end : 1.2 search_step : 0.02 max_percentile : 0.999999 min_percentile : 0.999999 "
    "asymmetric : false } dmq_balancer : { migration_strength : 0.5 } } } override_layer_configs : { "
    'layer_name : "Opname" calibration_config : { arq_quantize : { channel_wise : true } ifmr_quantize : '
    "{ search_range_start : 0.8 search_range_end : 1.2 search_step : 0.02 max_percentile : 0.999999 "
    "min_percentile : 0.999999 asymmetric : false } dmq_balancer : { migration_strength : 0.5 } } }"
)


def broken(text: str) -> str:
    """With the line break behind the comment, and without the dots that stand for settings left out."""
    return text.replace("parameter ", "parameter\n").replace("...", "")
