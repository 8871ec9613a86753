//! VMAN actors.
