//! What is a virtual machine? It does not know that migration exists.
