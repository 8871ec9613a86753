//! VMAN model.
