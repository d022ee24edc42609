// A database, a write, and rows streamed back.
package main

//go:generate buf generate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	persistov1 "persisto.example/gen"
)

// Calls that are answered UNAVAILABLE did nothing: they are tried again.
const retries = `{"methodConfig": [{
  "name": [{"service": "persisto.v1.DatabaseService"}],
  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2,
                  "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

func main() {
	address := "127.0.0.1:8080"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if err := run(address); err != nil {
		log.Fatal(err)
	}
}

func run(address string) error {
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(retries))
	if err != nil {
		return err
	}
	defer connection.Close()
	databases := persistov1.NewDatabaseServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	name := fmt.Sprintf("go-%d", os.Getpid())

	if _, err := databases.CreateDatabase(ctx, &persistov1.CreateDatabaseRequest{Database: name}); err != nil {
		return err
	}
	_, err = databases.ExecuteScript(ctx, &persistov1.ExecuteScriptRequest{
		Database: name, Script: "CREATE TABLE city (name TEXT, people INTEGER)"})
	if err != nil {
		return err
	}
	_, err = databases.Execute(ctx, &persistov1.ExecuteRequest{Database: name, Statement: &persistov1.Statement{
		Sql:        "INSERT INTO city VALUES (?, ?), (?, ?)",
		Parameters: []*persistov1.Value{text("Lisbon"), integer(567131), text("Porto"), integer(248769)},
	}})
	if err != nil {
		return err
	}
	rows, err := databases.Query(ctx, &persistov1.QueryRequest{Database: name, Statement: &persistov1.Statement{
		Sql: "SELECT name, people FROM city ORDER BY people DESC"}})
	if err != nil {
		return err
	}
	for {
		message, err := rows.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, row := range message.GetRowBatch().GetRows() {
			fmt.Println(row.Values[0].GetText(), row.Values[1].GetInteger())
		}
		if summary := message.GetSummary(); summary != nil {
			fmt.Println(summary.RowCount, "rows")
		}
	}
	_, err = databases.DeleteDatabase(ctx, &persistov1.DeleteDatabaseRequest{Database: name})
	return err
}

func text(value string) *persistov1.Value {
	return &persistov1.Value{Kind: &persistov1.Value_Text{Text: value}}
}

func integer(value int64) *persistov1.Value {
	return &persistov1.Value{Kind: &persistov1.Value_Integer{Integer: value}}
}
