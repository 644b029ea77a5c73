//! The envelope: magic, version, named sections with versions and lengths, and a checksum over all of it.
//!
//! ```text
//!   "VMOTSTAT" version:u16 sections:u16 { name_len:u8 name version:u16 len:u32 payload }* xxh3:u64     little endian
//! ```
//!
//! Reading never allocates by a number in the input: payloads are borrowed, and every count has a named limit.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

#[cfg(test)]
mod tests;

const MAGIC: [u8; 8] = *b"VMOTSTAT";
/// Version of the saved state this build writes, and the newest it reads.
pub const STATE_VERSION: u16 = 1;
const CHECKSUM_BYTES: usize = 8;

/// Largest saved state accepted, in bytes: 64 vCPUs with large vector state and devices fit ten times over.
pub(crate) const STATE_BYTES_MAX: usize = 16 << 20;
/// Largest section accepted, in bytes.
pub(crate) const SECTION_BYTES_MAX: usize = 1 << 20;
/// Most sections accepted.
pub(crate) const SECTIONS_MAX: usize = 256;
/// Longest section name, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 64;

/// What is wrong with a saved state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Not a saved state at all.
    #[error("Not a saved machine state")]
    Magic,
    /// Written by an incompatible version.
    #[error("Saved state has format version {0}, supported is {STATE_VERSION}")]
    Version(u16),
    /// Longer than any machine's.
    #[error("Saved state has {0} bytes, which is more than any machine has")]
    TooLarge(usize),
    /// Ends in the middle of something, or goes on after the end.
    #[error("Saved state is cut off or has something appended, near {0}")]
    Length(&'static str),
    /// The checksum does not match.
    #[error("Saved state is damaged: its checksum does not match")]
    Checksum,
    /// A limit was exceeded.
    #[error("Saved state exceeds a limit: {0}")]
    Limit(&'static str),
    /// Two sections of one name.
    #[error("Saved state has section {0:?} twice")]
    Duplicate(String),
    /// A section that must be there is not.
    #[error("Saved state lacks section {0:?}")]
    Missing(String),
    /// A section nobody took: a device this machine does not have.
    #[error("Saved state has section {0:?}, which nothing here takes")]
    Leftover(String),
    /// A section of another version.
    #[error("Section {section:?} has version {version}, supported is {supported}")]
    SectionVersion {
        /// Which.
        section: String,
        /// Its version.
        version: u16,
        /// What this program reads.
        supported: u16,
    },
    /// A section that does not parse.
    #[error("Section {section:?} is malformed: {reason}")]
    Malformed {
        /// Which.
        section: String,
        /// What the parser said.
        reason: String,
    },
    /// It parses, but belongs to a machine of another shape.
    #[error("Saved state does not fit this machine: {0}")]
    Mismatch(String),
}

/// Collects sections.
#[derive(Debug, Default)]
pub(crate) struct SectionWriter {
    body: Vec<u8>,
    sections: u16,
}

impl SectionWriter {
    /// Adds `payload` as section `name`.
    pub(crate) fn put_bytes(&mut self, name: &str, version: u16, payload: &[u8]) -> Result<(), StateError> {
        let name_length = u8::try_from(name.len()).ok().filter(|length| usize::from(*length) <= NAME_BYTES_MAX);
        let name_length = name_length.ok_or(StateError::Limit("section name"))?;
        if payload.len() > SECTION_BYTES_MAX {
            return Err(StateError::Limit("section length"));
        }
        let length = u32::try_from(payload.len()).map_err(|_| StateError::Limit("section length"))?;
        self.body.push(name_length);
        self.body.extend_from_slice(name.as_bytes());
        self.body.extend_from_slice(&version.to_le_bytes());
        self.body.extend_from_slice(&length.to_le_bytes());
        self.body.extend_from_slice(payload);
        self.sections += 1;
        Ok(())
    }

    /// Adds `value` as section `name`.
    pub(crate) fn put<T: Serialize>(&mut self, name: &str, version: u16, value: &T) -> Result<(), StateError> {
        let encoded = postcard::to_allocvec(value);
        let payload =
            encoded.map_err(|error| StateError::Malformed { section: name.to_owned(), reason: error.to_string() })?;
        self.put_bytes(name, version, &payload)
    }

    /// The finished state.
    pub(crate) fn finish(self) -> Vec<u8> {
        let Self { body, sections } = self;
        let mut state = Vec::with_capacity(MAGIC.len() + 4 + body.len() + CHECKSUM_BYTES);
        state.extend_from_slice(&MAGIC);
        state.extend_from_slice(&STATE_VERSION.to_le_bytes());
        state.extend_from_slice(&sections.to_le_bytes());
        state.extend_from_slice(&body);
        let checksum = xxh3_64(&state);
        state.extend_from_slice(&checksum.to_le_bytes());
        state
    }
}

/// Hands out sections; each once, and all of them must be taken.
#[derive(Debug)]
pub(crate) struct SectionReader<'a> {
    sections: BTreeMap<&'a str, (u16, &'a [u8])>,
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(StateError::Length(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], StateError> {
        self.take(N, what)?.try_into().map_err(|_| StateError::Length(what))
    }
}

impl<'a> SectionReader<'a> {
    /// Checks the envelope of `state`.
    pub(crate) fn open(state: &'a [u8]) -> Result<Self, StateError> {
        if state.len() > STATE_BYTES_MAX {
            return Err(StateError::TooLarge(state.len()));
        }
        let mut cursor = Cursor { rest: state };
        if cursor.take(MAGIC.len(), "magic").map_err(|_| StateError::Magic)? != MAGIC {
            return Err(StateError::Magic);
        }
        let version = u16::from_le_bytes(cursor.take_array("version")?);
        if version != STATE_VERSION {
            return Err(StateError::Version(version));
        }
        let covered = state.len().checked_sub(CHECKSUM_BYTES).ok_or(StateError::Length("checksum"))?;
        let (covered, checksum) = state.split_at(covered);
        if checksum != xxh3_64(covered).to_le_bytes() {
            return Err(StateError::Checksum);
        }
        let count = usize::from(u16::from_le_bytes(cursor.take_array("section count")?));
        if count > SECTIONS_MAX {
            return Err(StateError::Limit("section count"));
        }
        let mut sections = BTreeMap::new();
        for _ in 0..count {
            let (name, version, payload) = Self::section(&mut cursor)?;
            if sections.insert(name, (version, payload)).is_some() {
                return Err(StateError::Duplicate(name.to_owned()));
            }
        }
        if cursor.rest.len() != CHECKSUM_BYTES { Err(StateError::Length("end")) } else { Ok(Self { sections }) }
    }

    fn section(cursor: &mut Cursor<'a>) -> Result<(&'a str, u16, &'a [u8]), StateError> {
        let [name_length] = cursor.take_array("section name")?;
        if usize::from(name_length) > NAME_BYTES_MAX {
            return Err(StateError::Limit("section name"));
        }
        let name = cursor.take(usize::from(name_length), "section name")?;
        let name = std::str::from_utf8(name).map_err(|_| StateError::Limit("section name"))?;
        let version = u16::from_le_bytes(cursor.take_array("section version")?);
        let length = u32::from_le_bytes(cursor.take_array("section length")?);
        let length = usize::try_from(length).ok().filter(|length| *length <= SECTION_BYTES_MAX);
        let length = length.ok_or(StateError::Limit("section length"))?;
        Ok((name, version, cursor.take(length, "section payload")?))
    }

    /// Takes section `name` as it is.
    pub(crate) fn take_bytes(&mut self, name: &str) -> Result<(u16, &'a [u8]), StateError> {
        self.sections.remove(name).ok_or_else(|| StateError::Missing(name.to_owned()))
    }

    /// Takes and decodes section `name`.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str, supported: u16) -> Result<T, StateError> {
        let (version, payload) = self.take_bytes(name)?;
        let section = || name.to_owned();
        if version != supported {
            return Err(StateError::SectionVersion { section: section(), version, supported });
        }
        let malformed = |reason: String| StateError::Malformed { section: section(), reason };
        let (value, rest) = postcard::take_from_bytes(payload).map_err(|error| malformed(error.to_string()))?;
        if rest.is_empty() { Ok(value) } else { Err(malformed(format!("{} bytes are left over", rest.len()))) }
    }

    /// Names of the sections not taken yet.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.sections.keys().copied()
    }

    /// Every section must have been taken.
    pub(crate) fn finish(self) -> Result<(), StateError> {
        match self.sections.keys().next() {
            Some(name) => Err(StateError::Leftover((*name).to_owned())),
            None => Ok(()),
        }
    }
}
