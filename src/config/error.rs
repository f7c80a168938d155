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

/// Of a longer one a line shows the beginning: a whole list would keep what is wrong with it out of sight.
const LONGEST_VALUE: usize = 200;

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        match &self.value {
            _ if self.key.is_empty() => write!(f, "{}", self.rule),
            Some(value) if value.len() > LONGEST_VALUE => {
                let begin = &value[..value.floor_char_boundary(LONGEST_VALUE)];
                write!(f, "{} = {begin}…: {}", self.key, self.rule)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_stands_behind_the_beginning_of_a_long_value() {
        let error = |value: String| ConfigError {
            origin: "config.toml".to_owned(),
            key: "aggregate".to_owned(),
            value: Some(value),
            rule: "entry 2 (from 0): has no name".to_owned(),
        };
        let short = "é".repeat(LONGEST_VALUE / 2);
        assert!(error(short.clone()).to_string().contains(&format!(" = {short}: entry 2")));
        let long = error(format!("x{short}")).to_string();
        assert!(long.contains("é…: entry 2 (from 0): has no name") && long.len() < 300, "{long}");
    }
}
