//! What the tests and the benches drive piece by piece. No part of this is an interface for other programs.

pub mod aggregate {
    pub use crate::aggregate::{Coverage, GroupFold, KnownGroups, Limit, PartitionFold};
}

pub mod archive {
    pub mod partition {
        pub use crate::archive::partition::{
            BatchVerdict, Effect, Input, Moment, News, Partitions, PutAnswer, Rules, SegmentCommand, Transfer,
        };
    }

    pub mod spool {

        pub mod line {
            pub use crate::archive::line::LineEncoder;
        }

        pub mod open {
            pub use crate::archive::spool::open::OpenSegment;
        }

        pub mod segment {
            pub use crate::archive::spool::segment::{SealedSegment, SegmentHeader, VERSION};
        }
    }

    pub mod upload {

        pub mod opening {
            pub use crate::archive::upload::opening::{
                Head, HeadError, Heads, Known, OpenError, Unusable, end_of_chain,
            };
        }
    }
}

pub mod config {
    pub use crate::config::{
        AggregateConfig, ByteSize, Config, CorsConfig, EventConfig, HttpConfig, LiveConfig, OnGap, OnInvalid,
        QueueKind, StoreConfig,
    };
}

pub mod consume {
    pub use crate::consume::{Begin, Confirm, Halt, Reassign};

    pub mod assignments {
        pub use crate::consume::assignments::Assignments;
    }
}

pub mod event {
    pub use crate::event::{EventFields, TimeBounds, check, parse};
}

pub mod health {
    pub use crate::health::{ActorState, Closed, Health};
}

pub mod ingest {
    pub use crate::ingest::{Ingestor, StopAccepting, bind};

    pub mod format {
        pub use crate::ingest::format::{Format, split};
    }
}

pub mod log {
    pub use crate::log::{
        Appender, Assignment, Batch, ByteBudget, Delivery, Epoch, Full, Ingress, NewHeaders, NewRecord, Part, Producer,
        Publish, SourceCommand, SourceEvent, SourceEvents, SourceHandle, Span, Ticket,
    };

    pub mod dead_letters {
        pub use crate::log::dead_letters::{
            DeadLetter, DeadLetterWriter, DeadLetters, Filter, LettersError, Origin, Quarantine, Source,
        };
    }

    pub mod embedded {
        pub use crate::log::embedded::{EmbeddedLetters, EmbeddedLog};
    }

    pub mod kafka {
        pub use crate::log::kafka::{
            KafkaAppender, KafkaDeadLetters, KafkaLetters, SharedReader, SharedReads, TopicError, TopicWatches, check,
            prepare, settings, source,
        };
    }

    pub mod record {
        pub use crate::log::record::{ID_HEADER, RecordBuffer, write_header};
    }
}

pub mod measure {
    pub use crate::measure::{Frequent, Measures, More, Plan, Shown};
}

pub mod metrics {
    pub use crate::metrics::Metrics;
}

pub mod names {
    pub use crate::names::{ActorName, SinkName};
}

pub mod openapi {
    pub use crate::{admin::openapi::document as admin, ingest::openapi::document as ingest};
}

pub mod position {
    pub use crate::position::{Offset, Partition, Position, Timestamp, TopicIdentity};
}

pub mod store {
    pub use crate::store::{
        BucketDelta, BucketKey, Counted, Cursor, EventsPage, EventsQuery, Fence, Flushed, GroupsFound, GroupsOf,
        History, Prepared, ProcessedEvent, Query, Removal, Rows, Store, StoreError, StoreOptions, Version,
    };

    pub mod query {
        pub use crate::store::query::{Condition, Order, Ordered, Step};
    }

    pub mod rebuild {
        pub use crate::store::rebuild::{NewRebuild, Progress, Range, Reached, Rebuild, RebuildId, Rebuilds, Swapped};
    }

    pub mod embedded {
        pub use crate::store::embedded::EmbeddedStore;
    }

    pub mod mongo {
        pub use crate::store::mongo::MongoStore;
    }
}

pub mod supervise {
    pub use crate::supervise::Slot;
}

pub mod tls {
    pub use crate::tls::install;
}
