//! Templates: named sizes that VMs are made from. A VM keeps a copy.

use crate::{ids::TemplateName, time::UnixMs, vm::spec::VmSize};
use serde::{Deserialize, Serialize};

/// A named size and what VMs made from it boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// Its name, unique among templates.
    pub name: TemplateName,
    /// What a VM made from it gets unless its request says otherwise.
    pub size: VmSize,
    /// When it was made.
    pub created_at: UnixMs,
}
