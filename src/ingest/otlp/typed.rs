//! Values of JSON that are of one type each. What is of another is refused where it begins: nothing of it is kept to be looked at
//! once more, and no message quotes it, as serde's own would.

use std::{borrow::Cow, fmt, marker::PhantomData, str::FromStr};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

/// An object of JSON, and nothing else.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(As::<Self>(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for As<Object<T>> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Object<T>, E> {
        Err(E::custom("an object was expected, and this is a string"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// An array of JSON, and nothing else.
pub struct List<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(As::<Self>(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for As<List<T>> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<List<T>, E> {
        Err(E::custom("an array was expected, and this is a string"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<List<T>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = array.next_element()? {
            elements.push(element);
        }
        Ok(List(elements))
    }
}

pub struct Boolean(pub bool);

impl<'de> Deserialize<'de> for Boolean {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(As::<Self>(PhantomData))
    }
}

impl<'de> Visitor<'de> for As<Boolean> {
    type Value = Boolean;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a boolean")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Boolean, E> {
        Err(E::custom("a boolean was expected, and this is a string"))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Boolean, E> {
        Ok(Boolean(value))
    }
}

/// A JSON number, or a string with one.
pub struct Integer<T>(pub T);

/// What an [`Integer`] may be.
pub trait Whole: TryFrom<u64> + TryFrom<i64> + FromStr {}
impl<T: TryFrom<u64> + TryFrom<i64> + FromStr> Whole for T {}

impl<'de, T: Whole> Deserialize<'de> for Integer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(As::<Self>(PhantomData))
    }
}

impl<T: Whole> Visitor<'_> for As<Integer<T>> {
    type Value = Integer<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer in its range, or a string with one")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Integer<T>, E> {
        number.try_into().map(Integer).map_err(|_| E::custom(INTEGER))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Integer<T>, E> {
        number.try_into().map(Integer).map_err(|_| E::custom(INTEGER))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Integer<T>, E> {
        Err(E::custom(INTEGER))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Integer<T>, E> {
        text.parse().map(Integer).map_err(|_| E::custom(INTEGER))
    }
}

const INTEGER: &str = "an integer in its range was expected, or a string with one";

pub struct Double(pub f64);

impl<'de> Deserialize<'de> for Double {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(As::<Self>(PhantomData))
    }
}

impl Visitor<'_> for As<Double> {
    type Value = Double;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, \"NaN\", \"Infinity\" or \"-Infinity\"")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Double, E> {
        Ok(Double(number as f64))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Double, E> {
        Ok(Double(number as f64))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Double, E> {
        Ok(Double(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Double, E> {
        let number = match text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            // The standard library knows more names.
            text => text.parse().ok().filter(|number: &f64| number.is_finite()),
        };
        let wrong = || E::custom("a number was expected, \"NaN\", \"Infinity\" or \"-Infinity\"");
        number.map(Double).ok_or_else(wrong)
    }
}

/// The visitor that reads a `T`.
struct As<T>(PhantomData<T>);

/// An id of a trace or a span.
pub struct Hexadecimal(pub Vec<u8>);

impl<'de> Deserialize<'de> for Hexadecimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        hex::decode(&*text).map(Self).map_err(|_| D::Error::custom("an id in hexadecimal was expected"))
    }
}

pub struct Base64(pub Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const ANY_PADDING: GeneralPurposeConfig =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
        const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(&*text).or_else(|_| URL_SAFE.decode(&*text));
        bytes.map(Self).map_err(|_| D::Error::custom("bytes in base64 were expected"))
    }
}
