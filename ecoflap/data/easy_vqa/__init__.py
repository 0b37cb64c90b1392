"""Easy-VQA: questions about simple pictures, from the package easy-vqa."""
