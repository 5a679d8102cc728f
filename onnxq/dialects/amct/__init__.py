"""AMCT, Huawei Ascend's model compression toolkit: its configuration, its files and its calls."""
