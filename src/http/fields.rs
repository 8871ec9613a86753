//! Reads the fields of a JSON object one by one and collects everything that is
//! wrong, so that a client is told all of it at once. A field that nobody asked
//! for is refused with its name. `null` means "not said".

use super::error::{ApiError, Code, FieldError};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::{collections::BTreeMap, fmt, net::Ipv4Addr, ops::RangeInclusive, str::FromStr};
use vman_model::ids::IdError;

/// The fields of one object that have not been read yet.
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
    errors: Vec<FieldError>,
    unknown: Vec<FieldError>,
}

impl Fields {
    /// The fields of a body.
    pub(crate) fn new(map: Map<String, Value>) -> Self {
        Self {
            map,
            path: String::new(),
            errors: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Tells that a field is wrong.
    pub(crate) fn wrong(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError {
            field: format!("{}{name}", self.path),
            detail: detail.into(),
        });
    }

    /// Whether the field is given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Tells that the field is missing, if it is.
    pub(crate) fn require(&mut self, name: &str) {
        if !self.has(name) {
            self.wrong(name, "is required");
        }
    }

    /// A string.
    pub(crate) fn string(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(s) => Some(s),
            other => {
                self.wrong(name, format!("must be a string, not {}", kind(&other)));
                None
            }
        }
    }

    /// An IPv4 address.
    pub(crate) fn address(&mut self, name: &str) -> Option<Ipv4Addr> {
        let text = self.string(name)?;
        let address = text.parse().ok();
        if address.is_none() {
            self.wrong(name, "must be an IPv4 address such as 192.168.100.20");
        }
        address
    }

    /// A name or id.
    pub(crate) fn name<T: FromStr<Err = IdError>>(&mut self, name: &str) -> Option<T> {
        let text = self.string(name)?;
        match text.parse() {
            Ok(id) => Some(id),
            Err(error) => {
                self.wrong(name, error.to_string());
                None
            }
        }
    }

    /// A whole number within a range.
    pub(crate) fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(name)?;
        let whole = whole_number(&value);
        let fits = whole.filter(|n| range.contains(n));
        if fits.is_none() {
            let (low, high) = (range.start(), range.end());
            let got = match &value {
                Value::Number(n) => n.to_string(),
                other => kind(other).to_owned(),
            };
            self.wrong(
                name,
                format!("must be a whole number from {low} to {high}, not {got}"),
            );
        }
        fits
    }

    /// The same as 32 bits.
    pub(crate) fn whole_u32(&mut self, name: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let wide = u64::from(*range.start())..=u64::from(*range.end());
        self.whole(name, wide).and_then(|n| u32::try_from(n).ok())
    }

    /// Seconds, with a fraction if wanted, as milliseconds.
    pub(crate) fn seconds(&mut self, name: &str, max_s: f64) -> Option<u64> {
        let value = self.take(name)?;
        let millis = value.as_f64().and_then(|s| seconds_to_ms(s, max_s));
        if millis.is_none() {
            self.wrong(name, format!("must be seconds from 0 to {max_s}"));
        }
        millis
    }

    /// True or false.
    pub(crate) fn boolean(&mut self, name: &str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(b) => Some(b),
            other => {
                self.wrong(name, format!("must be true or false, not {}", kind(&other)));
                None
            }
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.string(name)?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(name, format!("must be one of {}", known.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    /// An object, read by `read`; what is wrong inside is told with its path.
    pub(crate) fn object<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Fields) -> Option<T>,
    ) -> Option<T> {
        let map = match self.take(name)? {
            Value::Object(map) => map,
            other => {
                self.wrong(name, format!("must be an object, not {}", kind(&other)));
                return None;
            }
        };
        let mut inner = Fields::new(map);
        inner.path = format!("{}{name}.", self.path);
        let read = read(&mut inner);
        inner.note_unknown();
        let ok = inner.errors.is_empty() && inner.unknown.is_empty();
        self.errors.append(&mut inner.errors);
        self.unknown.append(&mut inner.unknown);
        read.filter(|_| ok)
    }

    /// A list of objects, each read by `read`; what is wrong inside is told with its place.
    pub(crate) fn objects<T>(
        &mut self,
        name: &str,
        max: usize,
        mut read: impl FnMut(&mut Fields) -> Option<T>,
    ) -> Option<Vec<T>> {
        let list = match self.take(name)? {
            Value::Array(list) if list.len() <= max => list,
            Value::Array(_) => {
                self.wrong(name, format!("must have at most {max} entries"));
                return None;
            }
            other => {
                self.wrong(name, format!("must be an array, not {}", kind(&other)));
                return None;
            }
        };
        let mut out = Vec::with_capacity(list.len());
        for (n, value) in list.into_iter().enumerate() {
            let place = format!("{name}[{n}]");
            if value.is_null() {
                // In a list it stands for nothing that was left out.
                self.wrong(&place, "must be an object, not null");
                continue;
            }
            self.map.insert(place.clone(), value);
            out.push(self.object(&place, &mut read));
        }
        out.into_iter().collect()
    }

    /// A map of strings, checked one by one.
    pub(crate) fn strings(
        &mut self,
        name: &str,
        max: usize,
        check: impl Fn(&str, &str) -> Result<(), String>,
    ) -> Option<BTreeMap<String, String>> {
        let map = match self.take(name)? {
            Value::Object(map) => map,
            other => {
                let got = kind(&other);
                self.wrong(name, format!("must be an object of strings, not {got}"));
                return None;
            }
        };
        if map.len() > max {
            self.wrong(name, format!("must have at most {max} entries"));
            return None;
        }
        let mut out = BTreeMap::new();
        for (key, value) in map {
            let checked = match &value {
                Value::String(text) => check(&key, text),
                other => Err(format!("must be a string, not {}", kind(other))),
            };
            if let Err(detail) = checked {
                self.wrong(&format!("{name}.{}", shown(&key)), detail);
            } else if let Value::String(text) = value {
                out.insert(key, text);
            }
        }
        Some(out)
    }

    fn note_unknown(&mut self) {
        for key in std::mem::take(&mut self.map).keys() {
            self.unknown.push(FieldError {
                field: format!("{}{}", self.path, shown(key)),
                detail: "is not a field of this request".to_owned(),
            });
        }
    }

    /// Everything that is wrong, or nothing.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        self.note_unknown();
        let code = match (self.errors.is_empty(), self.unknown.is_empty()) {
            (true, true) => return Ok(()),
            (true, false) => Code::UnknownField,
            (false, _) => Code::InvalidFields,
        };
        self.errors.append(&mut self.unknown);
        // Ten thousand wrong fields help nobody.
        self.errors.truncate(MAX_TOLD);
        Err(ApiError::fields(code, self.errors))
    }
}

/// The most wrong fields told at once.
const MAX_TOLD: usize = 50;

/// A key that a client made up, as it is told back.
fn shown(key: &str) -> String {
    let mut told: String = key.chars().take(64).collect();
    if told.len() < key.len() {
        told.push('…');
    }
    told
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// `2` and `2.0` are the same number in JSON.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole_number(value: &Value) -> Option<u64> {
    let float = |n: f64| (n.fract() == 0.0 && (0.0..9.0e15).contains(&n)).then_some(n as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(float))
}

/// Seconds as whole milliseconds, if they are within bounds.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) fn seconds_to_ms(seconds: f64, max_s: f64) -> Option<u64> {
    (0.0..=max_s)
        .contains(&seconds)
        .then(|| (seconds * 1_000.0).round() as u64)
}

/// Reads a JSON object. Two fields of one name are refused: different readers
/// of JSON disagree about which of them counts. Depth is bounded by serde_json.
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Strict
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value))
        .map_err(|error| {
            ApiError::new(
                Code::MalformedJson,
                format!("the body is not JSON: {error}"),
            )
        })?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(ApiError::new(
            Code::InvalidFields,
            format!("the body must be a JSON object, not {}", kind(&other)),
        )),
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("not a number"))?;
        Ok(Value::Number(number))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict)? {
            out.push(value);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict)?;
            if map.contains_key(&key) {
                let told = format!("the field {:?} is there twice", shown(&key));
                return Err(de::Error::custom(told));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
