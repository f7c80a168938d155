"""Sends logs with OpenTelemetry's own exporter: a hundred with gzip, one that is good beside one that is too large, and one
that is too large alone. Prints what the exporter says of each."""

import logging
import sys

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource

memory = InMemoryLogRecordExporter()
provider = LoggerProvider(resource=Resource.create({"service.name": "shop"}))
provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
logger = logging.getLogger("shop")
logger.propagate = False
logger.addHandler(LoggingHandler(logger_provider=provider))

for number in range(100):
    logger.warning("message %d", number)
logger.warning("good")
logger.warning("large " + "x" * 4000)
records = list(memory.get_finished_logs())

exporters = [OTLPLogExporter(sys.argv[1], compression=compression) for compression in (Compression.Gzip, Compression.NoCompression)]
results = [
    exporters[0].export(records[:100]),
    exporters[1].export(records[100:]),
    exporters[0].export(records[101:]),
]
print("exported:", ", ".join(result.name for result in results))
for exporter in exporters:
    exporter.shutdown()
