//! The file of the cluster's pins on this node. It is replaced as a whole, so that a crash leaves the old or the new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::pins::{MAX_ENCODED, PinState, UnreadablePins};

/// The file.
#[derive(Debug)]
pub struct PinFile {
    path: PathBuf,
    /// Reason why the file must not be overwritten.
    kept: Option<String>,
}

impl PinFile {
    /// Opens a file, and returns the pins in it. A file of an unknown version, or one that cannot be read, is never overwritten; a
    /// damaged one is renamed.
    #[must_use]
    pub fn open(path: PathBuf) -> (Self, PinState) {
        let mut kept = None;
        let pins = match Self::read(&path) {
            Ok(Ok(pins)) => pins,
            Ok(Err(why @ UnreadablePins::UnknownVersion(_))) => {
                tracing::error!(file = %path.display(), %why, "cannot read the pins; pins cannot be changed on this node");
                kept = Some(why.to_string());
                PinState::default()
            }
            Ok(Err(why @ UnreadablePins::Malformed(_))) => {
                let aside = path.with_extension("json.damaged");
                tracing::error!(file = %path.display(), %why, renamed = %aside.display(), "cannot read the pins; starting without those that no other node knows");
                kept = fs::rename(&path, &aside).err().map(|error| error.to_string());
                PinState::default()
            }
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "cannot read the pins; pins cannot be changed on this node");
                kept = Some(error.to_string());
                PinState::default()
            }
        };
        (Self { path, kept }, pins)
    }

    /// Reads the pins in a file; none if it does not exist.
    ///
    /// # Errors
    /// If the file cannot be read, or its content not be understood.
    pub fn read(path: &Path) -> io::Result<Result<PinState, UnreadablePins>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(PinState::default())),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_ENCODED as u64 + 1).read_to_end(&mut bytes)?;
        Ok(PinState::decode(&bytes))
    }

    /// Replaces the content; blocks.
    ///
    /// # Errors
    /// If the file must not be overwritten, or cannot be written.
    pub fn save(&self, pins: &PinState) -> io::Result<()> {
        if let Some(why) = &self.kept {
            return Err(io::Error::other(format!("{} is not overwritten: {why}", self.path.display())));
        }
        let new = self.path.with_extension("json.new");
        // Names of objects are confidential.
        let options = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).clone();
        let mut file = options.open(&new)?;
        file.write_all(&pins.encode())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tempfile::TempDir;

    use super::*;

    fn pins() -> PinState {
        let mut pins = PinState::default();
        pins.set("s3://b/a/".parse().unwrap(), Some(1 << 41), SystemTime::now()).unwrap();
        pins.set("s3://b/gone/".parse().unwrap(), None, SystemTime::now()).unwrap();
        pins
    }

    #[test]
    fn saved_pins_are_found() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("pins.json");
        let (file, none) = PinFile::open(path.clone());
        assert_eq!(none, PinState::default());
        file.save(&pins()).unwrap();
        // A crash before the rename leaves this file.
        fs::write(path.with_extension("json.new"), "{\"ver").unwrap();
        let (file, found) = PinFile::open(path);
        assert_eq!(found.pins().count(), 1);
        file.save(&found).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_an_unknown_version_is_not_overwritten() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("pins.json");
        let newer = "{\"version\": 2, \"pins\": {\"by\": \"another structure\"}}";
        fs::write(&path, newer).unwrap();
        let (file, found) = PinFile::open(path.clone());
        assert_eq!(found, PinState::default());
        assert!(file.save(&pins()).unwrap_err().to_string().contains("another version"));
        assert_eq!(fs::read_to_string(path).unwrap(), newer);
    }

    #[test]
    fn a_damaged_file_is_kept_aside() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("pins.json");
        let whole = pins().encode();
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let (file, found) = PinFile::open(path.clone());
            assert_eq!(found, PinState::default());
            assert_eq!(fs::read(path.with_extension("json.damaged")).unwrap(), whole[..length]);
            file.save(&pins()).unwrap();
            assert!(PinFile::read(&path).unwrap().is_ok());
        }
        fs::write(&path, [b' '; MAX_ENCODED + 1]).unwrap();
        assert!(PinFile::read(&path).unwrap().is_err());
    }
}
