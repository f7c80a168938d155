//! What was found of an event outside of its value, on its way to be the record's headers.
//!
//! They are named as the Kafka protocol binding of CloudEvents names them (`ce_type`, `ce_id`, `ce_<extension>`,
//! `content-type`), also where the event is no CloudEvent: a reader of the log needs to know one way only.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::log::{NewHeaders, Span, record::write_header};

/// Attributes in the order in which they were set, each name once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Attributes<'a>(SmallVec<[(Cow<'a, str>, Cow<'a, str>); 8]>);

impl<'a> Attributes<'a> {
    /// Sets one, by its header's name; a value that it had before is gone.
    pub fn set(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    /// Sets all of these.
    pub fn extend(&mut self, others: Self) {
        others.0.into_iter().for_each(|(name, value)| self.set(name, value));
    }

    /// Puts them into the order of their names, so that the order in which an event names them makes no other record.
    pub fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// As a record's readers find them.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> + Clone {
        self.0.iter().map(|(name, value)| (&**name, Some(value.as_bytes())))
    }

    /// Bytes that they are as headers, at most.
    pub fn size(&self) -> usize {
        /// Of two lengths.
        const FRAME: usize = 10;
        self.0.iter().map(|(name, value)| FRAME + name.len() + value.len()).sum()
    }

    /// Appends them to what stands aside of the body, as headers. (Whoever calls bounds that to 4 GiB.)
    pub fn write(&self, aside: &mut Vec<u8>) -> NewHeaders {
        let start = aside.len() as u32;
        for (name, value) in self.headers() {
            write_header(aside, name, value);
        }
        NewHeaders { count: self.0.len() as u32, bytes: Span { start, end: aside.len() as u32 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::record::Headers;

    #[test]
    fn attributes_become_headers_in_their_order_and_each_name_stands_once() {
        let mut attributes = Attributes::default();
        attributes.set("ce_type", "a");
        attributes.set(format!("ce_{}", "shop"), "é".to_owned());
        attributes.set("content-type", "");
        attributes.set("ce_type", "b");
        let mut aside = b"before".to_vec();
        let NewHeaders { count, bytes } = attributes.write(&mut aside);
        assert!(bytes.end - bytes.start <= attributes.size() as u32);
        let headers: Vec<_> = Headers::new(count, bytes.of(&aside)).iter().collect();
        assert_eq!(headers, attributes.headers().collect::<Vec<_>>());
        let expected = [("ce_type", "b"), ("ce_shop", "é"), ("content-type", "")];
        assert_eq!(headers, expected.map(|(name, value)| (name, Some(value.as_bytes()))));
        assert_eq!(&aside[..bytes.start as usize], b"before");
    }
}
