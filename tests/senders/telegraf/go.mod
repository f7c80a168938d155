module sender

go 1.25.0

require github.com/influxdata/telegraf v1.37.2
