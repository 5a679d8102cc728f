"""Messages of auto_channel_prune.proto; written by ``python -m onnxq.dialects.amct.proto.generate``, not by hand."""

from google.protobuf import descriptor_pool, message_factory  # type: ignore[import-untyped]

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(
    b'\n2onnxq/dialects/amct/pr'
    b'oto/auto_channel_prune.p'
    b'roto\x12\x11onnxq.amct.search"'
    b'\x87\x01\n\x16AutoChannelPruneConf'
    b'ig\x12\x16\n\x0ecompress_ratio\x18\x01 \x02'
    b'(\x02\x12\x1e\n\x10ascend_optimized\x18\x02'
    b' \x01(\x08:\x04true\x12\x1a\n\x0fmax_prune_'
    b'ratio\x18\x03 \x01(\x02:\x011\x12\x19\n\x0etest_i'
    b'teration\x18\x04 \x01(\r:\x011'
)

AutoChannelPruneConfig = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["AutoChannelPruneConfig"])
