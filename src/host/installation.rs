//! A number that this installation has for ever: what is derived of it is the same over restarts,
//! a store that is made again, and a host that is replaced under its storage path.
//!
//! Owns: `<storage>/installation-id`, made when it is first asked for. Must not: make another where
//! there is one that cannot be read.

use super::dirs::{StorageDirs, put_whole};
use std::{
    fs,
    io::{self, Write},
};

/// The number, made of `fresh` where there is none. The error is a sentence.
pub fn id(dirs: &StorageDirs, fresh: [u8; 16]) -> Result<[u8; 16], String> {
    let path = dirs.root().join("installation-id");
    let told = |what: &'static str| {
        let path = path.display();
        move |error: io::Error| format!("{path} cannot be {what}: {error}")
    };
    match fs::read_to_string(&path) {
        Ok(text) => parse(&text).ok_or_else(|| {
            let path = path.display();
            format!("{path} does not hold 32 hexadecimal digits: put back what it held")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let number = u128::from_be_bytes(fresh);
            let made = put_whole(&path, |file| writeln!(file, "{number:032x}"));
            made.map_err(told("made"))?;
            Ok(fresh)
        }
        Err(error) => Err(told("read")(error)),
    }
}

fn parse(text: &str) -> Option<[u8; 16]> {
    let text = text.trim();
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|_| digits)?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_made_once_and_never_again_also_where_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = StorageDirs::new(folder.path());
        assert_eq!(id(&dirs, [7; 16]), Ok([7; 16]));
        assert_eq!(id(&dirs, [8; 16]), Ok([7; 16]));
        let path = folder.path().join("installation-id");
        for damaged in ["", "0707", "+7070707070707070707070707070707"] {
            fs::write(&path, damaged).unwrap();
            let error = id(&dirs, [9; 16]).unwrap_err();
            assert!(error.contains("put back what it held"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn where_it_cannot_be_made_it_is_told() {
        let dirs = StorageDirs::new("/proc/nowhere");
        let error = id(&dirs, [7; 16]).unwrap_err();
        assert!(error.contains("/proc/nowhere/installation-id"), "{error}");
    }
}
