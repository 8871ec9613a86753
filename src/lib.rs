//! VMAN.
