"""The products of experts: one product a group of rows."""

# By stored name: some of these ops exist only when their library is loaded.
GROUPED = ("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default")
