//! The fields that a template has and that a VM's request may override.

use crate::http::{fields::Fields, state::HttpState};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use vman_model::{
    ImageKind, ImageName,
    vm::{
        BootSpec, Firmware, VmSize,
        spec::{MAX_CMDLINE, MAX_CPUS, MAX_DISK_MIB, MAX_LABELS, MAX_RAM_MIB},
    },
};

const MIB_PER_GIB: u64 = 1_024;
/// The longest value of a label, in bytes.
const MAX_LABEL_VALUE: usize = 255;

/// Direct kernel boot, by image name.
#[derive(Serialize, ToSchema)]
#[schema(as = Boot)]
pub(crate) struct BootBody<'a> {
    /// The kernel image.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    kernel: &'a str,
    /// The initial RAM file system image.
    initrd: Option<&'a str>,
    /// The kernel's command line, at most 2047 bytes.
    #[schema(required = false, default = "", max_length = 2047)]
    cmdline: &'a str,
}

impl<'a> BootBody<'a> {
    pub(crate) fn of(boot: &'a BootSpec) -> Self {
        Self {
            kernel: boot.kernel.as_str(),
            initrd: boot.initrd.as_ref().map(ImageName::as_str),
            cmdline: &boot.cmdline,
        }
    }
}

/// GiB, rounded up.
pub(crate) fn gib(mib: u64) -> u64 {
    mib.div_ceil(MIB_PER_GIB)
}

/// What was said about a size; what was not said is left to the template.
#[derive(Debug, Default)]
pub(crate) struct SizeFields {
    pub(crate) cpu_count: Option<u32>,
    pub(crate) ram_mib: Option<u64>,
    image: Option<ImageName>,
    boot: Option<BootSpec>,
    firmware: Option<Firmware>,
    disk_mib: Option<u64>,
    labels: Option<BTreeMap<String, String>>,
}

impl SizeFields {
    /// Reads them.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let both = fields.has("ram_amount") && fields.has("ram_mib");
        if both {
            fields.wrong("ram_mib", "cannot be given together with ram_amount");
        }
        let ram_gib = fields.whole("ram_amount", 1..=MAX_RAM_MIB / MIB_PER_GIB);
        let ram_mib = fields.whole("ram_mib", 1..=MAX_RAM_MIB);
        let disk_gib = fields.whole("disk_gib", 1..=MAX_DISK_MIB / MIB_PER_GIB);
        Self {
            cpu_count: fields.whole_u32("cpu_count", 1..=MAX_CPUS),
            ram_mib: ram_mib.or(ram_gib.map(|gib| gib * MIB_PER_GIB)),
            image: fields.name("image"),
            boot: fields.object("boot", read_boot),
            firmware: fields.word(
                "firmware",
                &[("bios", Firmware::Bios), ("uefi", Firmware::Uefi)],
            ),
            disk_mib: disk_gib.map(|gib| gib * MIB_PER_GIB),
            labels: fields.strings("labels", MAX_LABELS, check_label),
        }
    }

    /// Tells which of the images that are named are not there, or of another kind.
    pub(crate) fn check_images(&self, state: &HttpState, fields: &mut Fields) {
        let inventory = state.inventory();
        let mut check = |field: &str, name: Option<&ImageName>, kind: ImageKind| {
            let Some(name) = name else { return };
            let kind = kind.as_str();
            match inventory.images.get(name) {
                Some(image) if image.value.kind.as_str() == kind => {}
                Some(image) => {
                    let is = image.value.kind.as_str();
                    fields.wrong(field, format!("image {name} is a {is} image, not a {kind} image"));
                }
                None => fields.wrong(
                    field,
                    format!("there is no image named {name}: upload it with PUT /images/{name}?kind={kind}"),
                ),
            }
        };
        check("image", self.image.as_ref(), ImageKind::Disk);
        let boot = self.boot.as_ref();
        check(
            "boot.kernel",
            boot.map(|boot| &boot.kernel),
            ImageKind::Kernel,
        );
        let initrd = boot.and_then(|boot| boot.initrd.as_ref());
        check("boot.initrd", initrd, ImageKind::Initrd);
    }

    /// The size of a template: only memory and CPUs have no default.
    pub(crate) fn alone(self) -> Option<VmSize> {
        Some(VmSize {
            cpu_count: self.cpu_count?,
            ram_mib: self.ram_mib?,
            image: self.image,
            boot: self.boot,
            firmware: self.firmware.unwrap_or_default(),
            disk_mib: self.disk_mib,
            labels: self.labels.unwrap_or_default(),
        })
    }

    /// The template's size with what was said over it.
    pub(crate) fn over(self, template: &VmSize) -> VmSize {
        VmSize {
            cpu_count: self.cpu_count.unwrap_or(template.cpu_count),
            ram_mib: self.ram_mib.unwrap_or(template.ram_mib),
            image: self.image.or_else(|| template.image.clone()),
            boot: self.boot.or_else(|| template.boot.clone()),
            firmware: self.firmware.unwrap_or(template.firmware),
            disk_mib: self.disk_mib.or(template.disk_mib),
            labels: self.labels.unwrap_or_else(|| template.labels.clone()),
        }
    }
}

fn read_boot(fields: &mut Fields) -> Option<BootSpec> {
    fields.require("kernel");
    let kernel = fields.name("kernel");
    let initrd = fields.name("initrd");
    let cmdline = fields.string("cmdline").unwrap_or_default();
    if cmdline.len() > MAX_CMDLINE {
        fields.wrong("cmdline", format!("must be at most {MAX_CMDLINE} bytes"));
    }
    if cmdline.chars().any(char::is_control) {
        fields.wrong("cmdline", "must not hold control characters");
    }
    Some(BootSpec {
        kernel: kernel?,
        initrd,
        cmdline,
    })
}

fn check_label(key: &str, value: &str) -> Result<(), String> {
    // The rule of names, and '/' for keys with a prefix of their own.
    let plain = key.replace('/', ".");
    vman_model::VmId::parse(&plain).map_err(|error| format!("the label's name {error}"))?;
    if value.len() > MAX_LABEL_VALUE {
        return Err(format!("must be at most {MAX_LABEL_VALUE} bytes"));
    }
    if value.chars().any(char::is_control) {
        return Err("must not hold control characters".to_owned());
    }
    Ok(())
}
