"""Points and their statistics, sentences, tables and figures."""
