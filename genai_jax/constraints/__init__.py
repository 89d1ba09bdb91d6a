"""What a text must be: regular expressions and JSON Schemas as automata over tokens."""
