//! Templates in the API.

use super::{
    Time,
    size::{BootBody, SizeFields, gib},
};
use crate::http::{error::ApiError, extract::Post, state::HttpState};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use vman_actors::store::Versioned;
use vman_model::{ImageName, TemplateName, TemplateRecord, UnixMs, vm::VmSize};

/// A template.
#[derive(Serialize, ToSchema)]
#[schema(as = Template)]
pub(crate) struct TemplateBody<'a> {
    /// Its name.
    name: &'a str,
    /// Virtual CPUs.
    cpu_count: u32,
    /// Memory in GiB, rounded up.
    ram_amount: u64,
    /// Memory in MiB.
    ram_mib: u64,
    /// The disk image that VMs boot from.
    image: Option<&'a str>,
    /// Direct kernel boot.
    boot: Option<BootBody<'a>>,
    /// `bios` or `uefi`.
    firmware: &'static str,
    /// The size of the root disk in GiB.
    disk_gib: Option<u64>,
    /// Labels, for the user's own use.
    labels: &'a BTreeMap<String, String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// The revision of its last change, as in `ETag`.
    revision: u64,
}

impl<'a> TemplateBody<'a> {
    pub(crate) fn of(row: &'a Versioned<TemplateRecord>) -> Self {
        let size = &row.value.size;
        Self {
            name: row.value.name.as_str(),
            cpu_count: size.cpu_count,
            ram_amount: gib(size.ram_mib),
            ram_mib: size.ram_mib,
            image: size.image.as_ref().map(ImageName::as_str),
            boot: size.boot.as_ref().map(BootBody::of),
            firmware: size.firmware.as_str(),
            disk_gib: size.disk_mib.map(gib),
            labels: &size.labels,
            created_at: Time(row.value.created_at),
            revision: row.revision.0,
        }
    }
}

/// A template to be made. Give `ram_amount` or `ram_mib`.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "its fields are the document; `read_template` reads them one by one"
)]
pub(crate) struct NewTemplate {
    /// Its name.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    name: String,
    /// Virtual CPUs.
    #[schema(minimum = 1, maximum = 255)]
    cpu_count: u32,
    /// Memory in GiB.
    #[schema(minimum = 1, maximum = 16384)]
    ram_amount: Option<u64>,
    /// Memory in MiB, instead of `ram_amount`.
    #[schema(minimum = 1, maximum = 16_777_216)]
    ram_mib: Option<u64>,
    /// The disk image that VMs boot from.
    image: Option<String>,
    /// Direct kernel boot.
    #[schema(value_type = Option<BootBody<'static>>)]
    boot: (),
    /// `bios` (the default) or `uefi`.
    firmware: Option<String>,
    /// The size of the root disk in GiB.
    #[schema(minimum = 1, maximum = 65536)]
    disk_gib: Option<u64>,
    /// Labels: at most 64, values of at most 255 bytes.
    labels: Option<BTreeMap<String, String>>,
}

/// Reads a [`NewTemplate`].
pub(crate) fn read_template(
    state: &HttpState,
    post: &mut Post,
    now: UnixMs,
) -> Result<TemplateRecord, ApiError> {
    let mut fields = post.fields();
    fields.require("name");
    fields.require("cpu_count");
    if !fields.has("ram_amount") && !fields.has("ram_mib") {
        fields.wrong("ram_amount", "is required, or ram_mib");
    }
    let name: Option<TemplateName> = fields.name("name");
    let size = SizeFields::read(&mut fields);
    size.check_images(state, &mut fields);
    let size: Option<VmSize> = size.alone();
    fields.finish()?;
    let (Some(name), Some(size)) = (name, size) else {
        return Err(ApiError::field("name", "is required"));
    };
    Ok(TemplateRecord {
        name,
        size,
        created_at: now,
    })
}
