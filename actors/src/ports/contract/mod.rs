//! One contract suite a port: what every implementation, real or fake, must
//! keep. A suite panics with what was broken.

pub mod storage;
