//! What is wrong with a configuration, in words for the one who wrote it.

use std::fmt;

use serde::Serialize;

use super::secrets::scrubbed;

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigError {
    /// Where the value was given: the file's path, the environment variable, the flag.
    #[serde(rename = "source")]
    pub origin: String,
    /// The dotted key; empty where the error is about the source as a whole.
    pub key: String,
    /// As it was given, with secrets hidden.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    pub rule: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        match &self.value {
            _ if self.key.is_empty() => write!(f, "{}", self.rule),
            Some(value) => write!(f, "{} = {value}: {}", self.key, self.rule),
            None => write!(f, "{}: {}", self.key, self.rule),
        }
    }
}

/// All that is wrong with a configuration, never empty; a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// Whoever pastes a key in the wrong place does not find it in the log: as a field, a name, a type, a path, or anywhere else.
    pub fn new(mut errors: Vec<ConfigError>) -> Self {
        for error in &mut errors {
            for text in [&mut error.origin, &mut error.key, &mut error.rule].into_iter().chain(&mut error.value) {
                *text = scrubbed(std::mem::take(text));
            }
        }
        Self(errors)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}
