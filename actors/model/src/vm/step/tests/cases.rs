//! Histories that went wrong once, or are easy to get wrong.
