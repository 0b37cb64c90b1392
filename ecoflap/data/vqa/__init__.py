"""VQAv2, OK-VQA and GQA: questions about photographs."""
