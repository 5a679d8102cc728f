"""Messages of scale_offset_record.proto; written by ``python -m onnxq.dialects.amct.proto.generate``, not by hand."""

from google.protobuf import descriptor_pool, message_factory  # type: ignore[import-untyped]

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(
    b'\n3onnxq/dialects/amct/pr'
    b'oto/scale_offset_record.'
    b'proto\x12\x11onnxq.amct.record'
    b'"\xe4\x03\n\x11SingleLayerRecord\x12\x0f'
    b'\n\x07scale_d\x18\x01 \x01(\x02\x12\x10\n\x08offse'
    b't_d\x18\x02 \x01(\x05\x12\x0f\n\x07scale_w\x18\x03 \x03'
    b'(\x02\x12\x10\n\x08offset_w\x18\x04 \x03(\x05\x12\x11\n\t'
    b'shift_bit\x18\x05 \x03(\r\x12\x1d\n\x15tenso'
    b'r_balance_factor\x18\x06 \x03(\x02\x12\x1a'
    b'\n\x0bskip_fusion\x18\t \x01(\x08:\x05fal'
    b'se\x12\x16\n\x08dst_type\x18\n \x01(\t:\x04IN'
    b'T8\x12\x16\n\x08act_type\x18\x0b \x01(\t:\x04IN'
    b'T8\x12\x16\n\x08wts_type\x18\x0c \x01(\t:\x04IN'
    b'T8\x12)\n\x18fakequant_precisio'
    b'n_mode\x18\r \x01(\t:\x07DEFAULT\x12\x1d\n'
    b'\x0cop_data_type\x18\x0f \x01(\t:\x07FLO'
    b'AT32\x12\x0f\n\x07scale_h\x18\x15 \x01(\x02\x12\x10\n'
    b'\x08offset_h\x18\x16 \x01(\x05\x12\x0f\n\x07scale'
    b'_r\x18\x17 \x03(\x02\x12\x10\n\x08offset_r\x18\x18 \x03'
    b'(\x05\x12!\n\x12is_tensor_quantize'
    b'\x18d \x01(\x08:\x05false\x12\x10\n\x08channel'
    b's\x18e \x01(\r\x12\x0e\n\x06height\x18f \x01(\r\x12'
    b'\r\n\x05width\x18g \x01(\r\x12\x0f\n\x07cluste'
    b'r\x18h \x03(\x05"9\n\x18SingleLayerKV'
    b'CacheRecord\x12\r\n\x05scale\x18\x01 \x03'
    b'(\x02\x12\x0e\n\x06offset\x18\x02 \x03(\x05"\x96\x01\n\rM'
    b'apFiledEntry\x12\x0b\n\x03key\x18\x01 \x01('
    b'\t\x123\n\x05value\x18\x02 \x01(\x0b2$.onnxq'
    b'.amct.record.SingleLayer'
    b'Record\x12C\n\x0ekv_cache_value'
    b'\x18\x03 \x01(\x0b2+.onnxq.amct.reco'
    b'rd.SingleLayerKVCacheRec'
    b'ord"\xfc\x01\n\tAttrProto\x12\x0c\n\x04nam'
    b'e\x18\x01 \x01(\t\x123\n\x04type\x18\x02 \x01(\x0e2%.'
    b'onnxq.amct.record.AttrPr'
    b'oto.AttrType\x12\t\n\x01f\x18\x03 \x01(\x02\x12'
    b'\t\n\x01i\x18\x04 \x01(\x03\x12\t\n\x01s\x18\x05 \x01(\x0c\x12\x0e\n'
    b'\x06floats\x18\x06 \x03(\x02\x12\x0c\n\x04ints\x18\x07 '
    b'\x03(\x03\x12\x0f\n\x07strings\x18\x08 \x03(\x0c"\\\n\x08'
    b'AttrType\x12\r\n\tUNDEFINED\x10\x00\x12'
    b'\t\n\x05FLOAT\x10\x01\x12\x07\n\x03INT\x10\x02\x12\n\n\x06S'
    b'TRING\x10\x03\x12\n\n\x06FLOATS\x10\x04\x12\x08\n\x04I'
    b'NTS\x10\x05\x12\x0b\n\x07STRINGS\x10\x06"E\n\tPr'
    b'uneNode\x12\x0c\n\x04name\x18\x01 \x02(\t\x12*\n'
    b'\x04attr\x18\x02 \x03(\x0b2\x1c.onnxq.amct'
    b'.record.AttrProto"\xa4\x01\n\x0bPr'
    b'uneRecord\x12.\n\x08producer\x18\x01 '
    b'\x03(\x0b2\x1c.onnxq.amct.record.'
    b'PruneNode\x12.\n\x08consumer\x18\x02 '
    b'\x03(\x0b2\x1c.onnxq.amct.record.'
    b'PruneNode\x125\n\x0fselective_p'
    b'rune\x18\x03 \x01(\x0b2\x1c.onnxq.amct.'
    b'record.PruneNode"{\n\x11Scal'
    b'eOffsetRecord\x120\n\x06record\x18'
    b'\x01 \x03(\x0b2 .onnxq.amct.recor'
    b'd.MapFiledEntry\x124\n\x0cprune'
    b'_record\x18\x02 \x03(\x0b2\x1e.onnxq.am'
    b'ct.record.PruneRecord'
)

SingleLayerRecord = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["SingleLayerRecord"])
SingleLayerKVCacheRecord = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["SingleLayerKVCacheRecord"])
MapFiledEntry = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["MapFiledEntry"])
AttrProto = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["AttrProto"])
PruneNode = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["PruneNode"])
PruneRecord = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["PruneRecord"])
ScaleOffsetRecord = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["ScaleOffsetRecord"])
