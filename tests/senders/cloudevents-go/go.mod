module sender

go 1.24.0

require github.com/cloudevents/sdk-go/v2 v2.16.2
